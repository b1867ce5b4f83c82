"""`larder serve` whose candidates run in `tests.misbehaving_candidate`: an entry for tests only."""

from __future__ import annotations

from functools import partial

import serving.app
from larder.cli import main

if __name__ == "__main__":
    serving.app.create_app = partial(serving.app.create_app, child_entry="tests.misbehaving_candidate")
    main()
