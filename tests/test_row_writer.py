"""The order of writes: whatever is written in whatever batches, the newest row stays. Also sizes, flushes, errors."""

import asyncio
import threading
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from feature_repo.errors import ConflictError
from feature_repo.online_keys import row_key
from feature_repo.redis_scripts import connect, connect_async
from feature_repo.row_scripts import SCRIPT_BYTES, SCRIPT_ROWS, ViewRows, index_commands, scripts_by_slot, scripts_of
from feature_repo.row_writer import write_rows, write_rows_async

NAMES = st.sampled_from(["a", "b", "ç", "}{"])
#: Around the places where Lua's numbers, or a comparison of the wrong half or sign, would go wrong.
SEQS = st.sampled_from([0, 1, 2**31, 2**32, 2**32 + 1, 2**53, 2**53 + 1, 2**63 - 1])
TIMES = st.sampled_from([-(2**63), -(2**32), -1, 0, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1])
ROWS = st.tuples(NAMES, NAMES, st.sampled_from([1, 2]), TIMES, SEQS, st.binary(max_size=2))


@pytest.fixture
def client(settings):
    with connect(settings, timeout_ms=5000) as client:
        yield client


def packed(layout: int, time: int, seq: int, rest: bytes) -> bytes:
    return layout.to_bytes(8, "little") + time.to_bytes(8, "little", signed=True) + seq.to_bytes(8, "big") + rest


def newest(old, new):
    """The row that stays: the later seq, then the later time within one layout, else the one written last."""
    (old_layout, old_time, old_seq, _), (layout, time, seq, _) = old, new
    return old if old_seq > seq or (old_seq == seq and old_layout == layout and old_time > time) else new


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(ROWS, max_size=8), max_size=4), st.booleans(), st.booleans())
def test_the_newest_row_of_each_entity_stays(client, settings, batches, hashes, in_loop):
    client.flushall()
    expected: dict = {}
    for batch in batches:
        first = [row[0] for row in batch]
        second = [row[1] for row in batch] if hashes else None
        view = ViewRows("v", first, [packed(*row[2:]) for row in batch], second)
        written = 0
        for name, field, *row in batch:
            place = (name, field) if hashes else (name,)
            kept = newest(expected[place], row) if place in expected else row
            written += kept is row
            expected[place] = kept
        if in_loop:
            assert asyncio.run(write_in_loop(settings, view)) == written
        else:
            assert write_rows(client, settings.project, view) == written
    for place, row in expected.items():
        key = row_key(settings.project, "v", place[0])
        assert (client.hget(key, place[1]) if hashes else client.get(key)) == packed(*row)


async def write_in_loop(settings, view) -> int:
    async with connect_async(settings) as client:
        return await write_rows_async(client, settings.project, view)


def test_a_large_batch_is_written_whole_though_the_scripts_are_flushed_meanwhile(client, settings):
    n, done = 4_000, threading.Event()
    rows, names = [packed(1, i, 5, b"") for i in range(n)], [str(i) for i in range(n)]
    batch = ViewRows("v", [f"e{i % 70}" for i in range(n)], rows, names)

    def flush() -> None:
        with connect(settings, timeout_ms=5000) as other:
            while not done.wait(0.001):
                other.script_flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        assert write_rows(client, settings.project, batch) == n
    finally:
        done.set()
        flusher.join()
    client.script_flush()
    assert asyncio.run(write_in_loop(settings, batch)) == n
    assert sum(client.hlen(row_key(settings.project, "v", f"e{i}")) for i in range(70)) == n


def test_a_hash_of_more_fields_than_lua_can_unpack_is_written(client, settings):
    n = 2 * SCRIPT_ROWS
    batch = ViewRows("v", ["u"] * n, [packed(1, 1, i, b"") for i in range(n)], [str(i) for i in range(n)])
    assert write_rows(client, settings.project, batch) == n
    assert client.hlen(row_key(settings.project, "v", "u")) == n


@given(st.lists(st.integers(0, SCRIPT_BYTES), max_size=30), st.booleans())
def test_scripts_are_bounded_and_have_every_row_once(sizes, by_slot):
    rows = [bytes(size) for size in sizes]
    batch = ViewRows("v", [f"e{i}" for i in range(len(rows))], rows)
    scripts = list(scripts_by_slot("p", batch, lambda key: len(key) % 2) if by_slot else scripts_of("p", batch))
    for keys, (n, *values) in scripts:
        assert len(keys) == n == len(values) <= SCRIPT_ROWS
        assert n == 1 or sum(map(len, values)) <= SCRIPT_BYTES
    written = sorted(
        (key, len(value)) for keys, (_, *values) in scripts for key, value in zip(keys, values, strict=True)
    )
    assert written == sorted((row_key("p", "v", f"e{i}"), size) for i, size in enumerate(sizes))


def test_index_commands_are_bounded_too():
    commands = index_commands("p", ViewRows("v", [f"e{i}" for i in range(900_000)], []))
    assert max(len(command) for command in commands) <= 2 + 2 * 500
    assert sum(len(command) - 2 for command in commands) == 2 * 900_000
    assert all(a != b for a, b in pairwise(sorted(command[1:3] for command in commands)))


def test_a_view_whose_number_of_entities_changed_is_refused_clearly(client, settings):
    write_rows(client, settings.project, ViewRows("v", ["u"], [packed(1, 1, 1, b"")]))
    with pytest.raises(ConflictError, match="another number of entities"):
        write_rows(client, settings.project, ViewRows("v", ["u"], [packed(1, 1, 1, b"")], ["i"]))
