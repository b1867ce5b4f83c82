"""`larder` with one defence removed, so that tests of faults must notice: `python -m tests.without_defence NAME ...`.

Only here: the product has no switch for it. Each removal must find what it removes, or it fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from feature_repo import fold, redis_scripts
from feature_repo.events import stream_id_of
from feature_repo.online_keys import events_key


def _replace_in_script(name: str, text: str, instead: str) -> None:
    whole = redis_scripts.script_text

    def changed(asked: str) -> str:
        script = whole(asked)
        if asked != name:
            return script
        assert script.count(text) == 1, f"{name}.lua no longer has {text!r}: adapt tests/without_defence.py"
        return script.replace(text, instead)

    redis_scripts.script_text = changed


def duplicate_memory() -> None:
    """The API forgets which event ids it has seen."""
    _replace_in_script("append", "if known then", "if false then")


def watermark_compare() -> None:
    """A writer does not notice that another one moved the watermark."""
    _replace_in_script("ingest_write", "~= ARGV[1] then return -1 end", "== nil then return -1 end")


def row_seq() -> None:
    """The fold does not look at the `seq` a row holds."""
    whole = fold.fold_events

    def forgetful(events: Any, states: Any, *rest: Any) -> None:
        for state in states:
            state.ints[:, 1] = 0
        whole(events, states, *rest)

    fold.fold_events = forgetful


def trimming_behind_the_log() -> None:
    """The stream is trimmed behind the fold alone."""
    from feature_repo.ingest import IngestWorker

    whole = IngestWorker.step

    def hasty(self: Any, *args: Any, **kwargs: Any) -> int:
        done = whole(self, *args, **kwargs)
        self._client.xtrim(events_key(self._project), minid=stream_id_of(self.status.watermark), approximate=False)
        return done

    IngestWorker.step = hasty


DEFENCES: dict[str, Callable[[], None]] = {
    remove.__name__: remove for remove in (duplicate_memory, watermark_compare, row_seq, trimming_behind_the_log)
}

if __name__ == "__main__":
    DEFENCES[sys.argv.pop(1)]()
    from larder.cli import main

    main()
