"""The API's side of a candidate's process: starts it, asks it, kills it when it hangs, and starts it again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from feature_repo.events import Repeats
from feature_repo.rows import Rows, UserRows
from serving.cascade.exploration import Exploring
from serving.cascade.items import ItemTable
from serving.cascade.rerank import DiversityKind
from serving.child_scorer.messages import (
    LENGTH,
    MAX_REPLY_BYTES,
    AskDraft,
    AskFinish,
    ChangedItems,
    Drafted,
    Failed,
    Finished,
    PackedRows,
    PackedUser,
    Ready,
    Refused,
    Reply,
    WholeTable,
    decode_reply,
    frame,
)
from serving.child_scorer.process import DEFAULT_LIMITS, ENTRY, ChildLimits, start_process
from serving.impressions import Failure
from serving.item_table_source import ItemTableSource, TableChange
from serving.plan import Arm

_LOG = logging.getLogger(__name__)
#: Questions without an answer; further ones would wait too long anyway.
MAX_WAITING: Final = 16
#: Changes of items that may wait to be read; with more the process is started again, with the whole table.
_MAX_UNSENT_BYTES: Final = 64 * 1024**2
_TABLE_POLL_S: Final = 0.1
#: A loop that was busy sees the clock before the socket: an answer that has arrived by then counts all the same, after
#: so many turns of the loop (the socket, the reader, this question).
_LOOKS: Final = 4

Restart = Literal["died", "hung", "refused"]
RESTARTS: tuple[Restart, ...] = ("died", "hung", "refused")


class CandidateError(Exception):
    """The candidate did not answer; `kind` says how, for the record of the answer."""

    def __init__(self, kind: Failure, reason: str = "") -> None:
        super().__init__(reason or kind)
        self.kind: Failure = kind


class ChildScorer:
    """A candidate in a process of its own.

    Parameters
    ----------
    arm
        The candidate.
    bundles_dir
        Content store.
    items
        The API's item table; the child gets a copy and every change, so indices mean the same on both sides.
    on_restart
        Called with the reason whenever the process ended that should not have.
    entry
        Module that is run; another one only in tests.

    Attributes
    ----------
    ready
        What the child said of its bundle; None while it is not up.
    began
        Whether it was up once, or failed to come up: from then on its users count as its users.
    problem
        Why it is not up, for `/readyz`.
    table
        The item table the next question will be answered from.
    """

    def __init__(
        self,
        arm: Arm,
        bundles_dir: Path,
        items: ItemTableSource,
        on_restart: Callable[[Restart], None],
        limits: ChildLimits = DEFAULT_LIMITS,
        entry: str = ENTRY,
    ) -> None:
        self.arm = arm
        self.ready: Ready | None = None
        self.began = False
        self.problem: str | None = None
        self.table: ItemTable | None = None
        self._directory = bundles_dir / arm.bundle_id
        self._items = items
        self._on_restart = on_restart
        self._limits = limits
        self._entry = entry
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Drafted | Finished]] = {}
        self._unanswered: dict[int, float] = {}
        self._heard = 0.0
        self._hung = False
        self._max_unsent = _MAX_UNSENT_BYTES
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Id of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, and again whenever it ends."""
        self._task = asyncio.create_task(self._keep_up(), name=f"candidate {self.arm.bundle_id}")

    def try_again(self) -> None:
        """Start it now if it waits to be started: there is a new plan."""
        self._again.set()

    async def stop(self) -> None:
        """End the process, now."""
        # Like BackgroundWork: a cancellation can be lost, so it is sent until the task has ended.
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.2)

    async def draft(
        self,
        user: UserRows,
        now_us: int,
        timeout_s: float,
        *,
        k: int,
        exclude: Sequence[str],
        repeats: Repeats | None,
        diversity: DiversityKind | None,
    ) -> Drafted:
        """Ask for candidates (`Recommender.draft`).

        Raises
        ------
        CandidateError
            If it is not up, fails, or does not answer in time.
        """
        number, deadline = next(self._numbers), _deadline_ns(timeout_s)
        question = AskDraft(
            number, deadline, PackedUser.of(user), now_us, k, list(exclude), repeats=repeats, diversity=diversity
        )
        reply = await self._ask(number, question, timeout_s)
        if not isinstance(reply, Drafted):
            raise CandidateError("error", "it answered something else than was asked")
        return reply

    async def finish(
        self,
        drafted: Drafted,
        pairs: Rows,
        timeout_s: float,
        *,
        all_candidates: bool,
        exploring: Exploring | None = None,
    ) -> Finished:
        """Ask for the list (`Recommender.finish`); raises like `draft`."""
        packed = PackedRows.of(pairs)
        question = AskFinish(drafted.number, _deadline_ns(timeout_s), packed, all_candidates, exploring)
        reply = await self._ask(drafted.number, question, timeout_s)
        if not isinstance(reply, Finished):
            raise CandidateError("error", "it answered something else than was asked")
        return reply

    async def _ask(self, number: int, question: AskDraft | AskFinish, timeout_s: float) -> Drafted | Finished:
        if self.ready is None or self._writer is None or self.table is None:
            raise CandidateError("fallback")
        if len(self._unanswered) >= MAX_WAITING or timeout_s <= 0:
            raise CandidateError("timeout")
        future: asyncio.Future[Drafted | Finished] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._unanswered[number] = time.monotonic()
        self._writer.write(frame(question))
        try:
            await asyncio.wait({future}, timeout=timeout_s)
            for _ in range(_LOOKS):
                if future.done():
                    return future.result()
                await asyncio.sleep(0)
            raise CandidateError("timeout")
        finally:
            self._waiting.pop(number, None)
            future.cancel()

    async def _keep_up(self) -> None:
        deaths = refusals = 0
        while True:
            while self._items.table is None:  # nothing could be answered; Redis is away
                await asyncio.sleep(_TABLE_POLL_S)
            started = time.monotonic()
            self._hung = False
            refused = why = None
            try:
                why = await self._live()
            except _RefusalError as error:
                refused = str(error)
            except Exception as error:  # no memory or no file descriptor for a process; the API goes on
                _LOG.exception("the process of candidate %s could not be run", self.arm.bundle_id)
                why = f"{type(error).__name__}: {error}"
            self.began = True
            name = f"bundle {self.arm.bundle_id} of a candidate"
            if refused is not None:
                delay_s, kind = min(self._limits.retry_s * 2 ** min(refusals, 9), self._limits.cooldown_s), "refused"
                self.problem, refusals = f"{name} was refused: {refused}", refusals + 1
            else:
                refusals = 0
                deaths = 1 if time.monotonic() - started > self._limits.steady_s else deaths + 1
                delay_s, kind = self._limits.backoff_s * 2 ** (deaths - 1), "hung" if self._hung else "died"
                self.problem = f"{name}: its process {why}"
                if deaths >= self._limits.deaths:
                    delay_s, self.problem = self._limits.cooldown_s, f"{self.problem}; {deaths} times in a row"
                    deaths = 0
            self._on_restart(kind)  # type: ignore[arg-type]
            _LOG.error("%s; again in %.1f s", self.problem, delay_s)
            self._again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._again.wait()
                    refusals = 0

    async def _live(self) -> str:
        """Run one process until it ends; say how it ended."""
        process, ours = start_process(self._entry, self._directory, self._limits.memory_mb)
        self._process = process
        watch: asyncio.Task[None] | None = None
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            await self._send_table(writer)
            self._writer = writer
            self._items.listeners.append(self._forward)
            async with asyncio.timeout(self._limits.start_s):
                said = await _read(reader)
            if isinstance(said, Refused):
                raise _RefusalError(said.reason)
            if not isinstance(said, Ready):
                raise msgspec.ValidationError("it is not ready")
            self.ready, self.began, self.problem = said, True, None
            _LOG.info("candidate %s answers, process %d", self.arm.bundle_id, process.pid)
            self._heard = time.monotonic()
            watch = asyncio.create_task(self._watch(process))
            while True:
                self._take(await _read(reader))
        except TimeoutError:
            return f"did not say within {self._limits.start_s:.0f} s that it is ready"
        except (asyncio.IncompleteReadError, OSError):
            pass
        except msgspec.MsgspecError as error:
            return f"answered what is no answer: {error}"
        finally:
            self._forget()
            if watch is not None:
                watch.cancel()
            ours.close() if writer is None else writer.transport.abort()
            process.kill()
            while process.poll() is None:  # it cannot refuse; not in a thread, so that stopping can wait for it
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.005)
            self._process = None
        return "hung and was ended" if self._hung else f"ended with status {process.returncode}"

    def _forget(self) -> None:
        """Have what waits for the process that ended go on without it."""
        self.ready, self.table, self._writer = None, None, None
        with contextlib.suppress(ValueError):
            self._items.listeners.remove(self._forward)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(CandidateError("timeout" if self._hung else "error"))
        self._unanswered.clear()

    async def _send_table(self, writer: asyncio.StreamWriter) -> None:
        """Send the whole table; again if it changed while it was encoded."""
        self.table = None
        while self.table is not self._items.table and (table := self._items.table) is not None:
            writer.write(await asyncio.to_thread(lambda: frame(WholeTable.of(table))))
            self.table = table
        # A process that is being started has not read any of it yet, however large it is.
        self._max_unsent = writer.transport.get_write_buffer_size() + _MAX_UNSENT_BYTES

    def _forward(self, change: TableChange) -> None:
        """Send a change in the moment the API's own table is swapped."""
        if self._writer is None:
            return
        if change.before is not self.table or self._writer.transport.get_write_buffer_size() > self._max_unsent:
            self._hung = True
            self._writer.transport.abort()  # the next process begins with the whole table
            return
        self._writer.write(frame(ChangedItems(change.catalog, PackedRows.of(change.stats), change.after.as_of_us)))
        self.table = change.after

    def _take(self, reply: Reply) -> None:
        self._heard = time.monotonic()
        if isinstance(reply, Ready | Refused):
            return
        self._unanswered.pop(reply.number, None)
        future = self._waiting.get(reply.number)
        if future is None or future.done():
            return
        if isinstance(reply, Failed):
            future.set_exception(CandidateError(reply.failure, reply.reason))
        else:
            future.set_result(reply)

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process once it has left a question unanswered for too long."""
        while True:
            await asyncio.sleep(self._limits.hung_s / 8)
            oldest = min(self._unanswered.values(), default=None)
            if oldest is not None and time.monotonic() - max(oldest, self._heard) > self._limits.hung_s:
                self._hung = True
                process.kill()
                return


class _RefusalError(Exception):
    """The child says that its bundle cannot be served."""


async def _read(reader: asyncio.StreamReader) -> Reply:
    length = LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]
    if length > MAX_REPLY_BYTES:
        raise msgspec.ValidationError(f"a reply of {length} bytes")
    return decode_reply(await reader.readexactly(length))


def _deadline_ns(timeout_s: float) -> int:
    return time.monotonic_ns() + int(timeout_s * 1e9)
