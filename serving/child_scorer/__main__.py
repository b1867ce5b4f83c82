"""`python -m serving.child_scorer`: a candidate's process; the API starts it, nobody else."""

from serving.child_scorer.scoring import main

if __name__ == "__main__":
    main()
