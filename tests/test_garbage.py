"""What only refers to itself is freed by the clock: by its count alone the collector would hardly ever look."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from feature_repo.settings import Settings
from serving import garbage
from serving.item_table_source import ItemTableSource
from serving.state import ServingState
from tests.running_api import RunningApi, wait_until


@pytest.fixture
def thresholds() -> Iterator[None]:
    """Leave the collector as it was found: the app sets thresholds for its process, which is the tests' here."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class Reader:
    """Keeps the error that ended it, as asyncio's stream readers do; the error's frames keep the reader."""

    def __init__(self) -> None:
        self.buffer, self.error = bytearray(1_000), OSError()

    def read(self) -> None:
        raise self.error


def cut_off() -> weakref.ref[Reader]:
    """Read from a connection that was cut, and let go of it; return what tells whether it is gone."""
    reader = Reader()
    with pytest.raises(OSError):
        reader.read()
    return weakref.ref(reader)


def test_a_process_keeps_nothing_of_what_faults_leave(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, thresholds: None
) -> None:
    monkeypatch.setattr(garbage, "EVERY_S", 0.1)
    with RunningApi(settings):
        for _ in range(3):  # what was in use at one look is found by a later one
            left = cut_off()
            wait_until(lambda: left() is None, 10.0)  # noqa: B023 # called in this turn only
        assert gc.get_threshold()[0] == garbage.THRESHOLD, "looked at by count, the test proves nothing"


def test_the_count_alone_does_not_free_it(settings: Settings, thresholds: None) -> None:
    with RunningApi(settings) as api:
        left = cut_off()
        for _ in range(50):
            api.ready()
        assert left() is not None, "if the count frees it, the look by the clock can go"


async def test_a_look_waits_for_a_moment_without_requests_but_not_for_ever() -> None:
    state = ServingState(ItemTableSource(None, lambda: 0))  # type: ignore[arg-type] # nothing is read
    began = time.monotonic()
    await state.idle(10.0)
    assert time.monotonic() - began < 1.0, "nobody was there to wait for"
    state.under_way = 1
    waiting = asyncio.create_task(state.idle(10.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    state.under_way = 0
    await asyncio.wait_for(waiting, 5.0)
    state.under_way = 1
    await asyncio.wait_for(state.idle(0.05), 5.0)
