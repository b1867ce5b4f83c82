"""A candidate's process that behaves as a file beside the bundles says: an entry for tests only."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

from serving.child_scorer.messages import AskDraft, Drafted
from serving.child_scorer.scoring import Scoring, main

FILE: Final = "misbehave"
#: As many questions a "late" candidate answers well: it must get past the shadow first.
LATE: Final = 300

_draft = Scoring._draft


class Misbehaviour:
    """What is wrong with this process."""

    def __init__(self, bundle: Path) -> None:
        path = bundle.parent.parent / FILE
        words = path.read_text("utf-8").split() if path.is_file() else []
        self.late = "late" in words
        self.kind = words[-1] if words else ""
        self.asked = 0

    def happen(self) -> None:
        """Do what is wrong, if it is time for it."""
        self.asked += 1
        if self.late and self.asked <= LATE:
            return
        if self.kind == "slow":
            time.sleep(0.3)
        elif self.kind == "hanging" and self.asked % 40 == 0:
            time.sleep(60.0)
        elif self.kind == "failing" and self.asked % 5 == 0:
            raise RuntimeError("a bug")
        elif self.kind == "dying" and self.asked % 40 == 0:
            os._exit(3)


if __name__ == "__main__":
    wrong = Misbehaviour(Path(sys.argv[sys.argv.index("--bundle") + 1]))

    def draft(self: Scoring, asked: AskDraft) -> Drafted:
        """Draft, once what is wrong has happened."""
        wrong.happen()
        return _draft(self, asked)

    Scoring._draft = draft  # type: ignore[method-assign]
    main()
