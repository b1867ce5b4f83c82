"""Inside a candidate's process: loads one bundle and answers the API's questions about it, one after the other."""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from feature_repo.errors import BadInputError
from serving.bundle import Bundle, load_bundle
from serving.cascade.items import ItemTable
from serving.cascade.recommender import Draft
from serving.child_scorer.messages import (
    LENGTH,
    Array,
    AskDraft,
    AskFinish,
    ChangedItems,
    Drafted,
    Failed,
    Finished,
    Question,
    Ready,
    Refused,
    Reply,
    WholeTable,
    decode_question,
    frame,
)
from serving.item_table_source import next_table
from serving.warm_up import warm_up

_LOG = logging.getLogger(__name__)
#: Drafts that may wait for their pair rows; the API gives some up without a word.
_MAX_DRAFTS: Final = 64
_PR_SET_PDEATHSIG: Final = 1


class Scoring:
    """One bundle, its copy of the item table, and the drafts that wait for their pair rows."""

    def __init__(self, bundle: Bundle, table: ItemTable | None) -> None:
        self._recommender = bundle.recommender
        self._table = table
        self._drafts: dict[int, Draft] = {}

    def answer(self, question: Question) -> Reply | None:
        """Answer a question; None where nothing was asked. A model's exception is an answer, too."""
        if isinstance(question, WholeTable):
            self._table = question.unpack()
            return None
        if isinstance(question, ChangedItems):
            self._table = next_table(self._table, question.catalog, question.stats.unpack(), question.as_of_us)
            return None
        if time.monotonic_ns() > question.deadline_ns:
            self._drafts.pop(question.number, None)
            return Failed(question.number, "timeout", "nobody waits for it any more")
        try:
            return self._draft(question) if isinstance(question, AskDraft) else self._finish(question)
        except Exception as error:  # whatever a candidate does; the API counts it and the stable model answers
            _LOG.exception("the candidate failed on a request")
            return Failed(question.number, "error", f"{type(error).__name__}: {error}"[:500])

    def _draft(self, asked: AskDraft) -> Drafted:
        if self._table is None:
            raise BadInputError("the candidate's process has no item table yet")
        draft = self._recommender.draft(
            asked.user.unpack(),
            self._table,
            asked.now_us,
            k=asked.k,
            exclude=asked.exclude,
            repeats=asked.repeats,
            diversity=asked.diversity,
        )
        while len(self._drafts) >= _MAX_DRAFTS:
            del self._drafts[next(iter(self._drafts))]
        self._drafts[asked.number] = draft
        return Drafted(asked.number, Array.of(draft.candidates.items), Array.of(draft.candidates.source))

    def _finish(self, asked: AskFinish) -> Finished:
        slate = self._recommender.finish(self._drafts.pop(asked.number), asked.pairs.unpack(), asked.exploring)
        which = np.arange(len(slate.matrix)) if asked.all_candidates else slate.ranked
        return Finished(asked.number, slate.items, Array.of(slate.matrix[which]), Array.of(which), slate.explored)


def main(arguments: list[str] | None = None) -> None:
    """Serve one bundle over an inherited socket until the other side is closed.

    Examples
    --------
    >>> main(["--help"])  # doctest: +SKIP
    """
    parser = argparse.ArgumentParser(description="A candidate's process; started by the API.")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    parser.add_argument("--parent", type=int, required=True, help="end with this process")
    parser.add_argument("--bundle", type=Path, required=True, help="directory of the bundle, named by its id")
    parser.add_argument("--memory-mb", type=int, required=True, help="memory it may take")
    args = parser.parse_args(arguments)
    _end_with(args.parent)
    # What is allocated, not the address space: libraries reserve much more of that than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (args.memory_mb * 1024**2, args.memory_mb * 1024**2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1, "blas")
    with socket.socket(fileno=args.fd) as channel:
        serve(channel, args.bundle)


def serve(channel: socket.socket, directory: Path) -> None:
    """Load the bundle, say so, and answer until the other side is closed. The first question brings the table."""
    first = _receive(channel)
    table = first.unpack() if isinstance(first, WholeTable) else None
    try:
        bundle = _load(directory, table)
    except Exception as error:
        _LOG.error("bundle %s was refused: %s", directory.name, error)
        channel.sendall(frame(Refused(f"{type(error).__name__}: {error}"[:500])))
        return
    scoring = Scoring(bundle, table)
    if first is not None and table is None:
        scoring.answer(first)
    gc.collect()
    gc.freeze()
    recommender = bundle.recommender
    names = [generator.name for generator in recommender.generators]
    channel.sendall(frame(Ready(recommender.service, names, recommender.policy.repeats)))
    while (question := _receive(channel)) is not None:
        reply = scoring.answer(question)
        if reply is not None:
            channel.sendall(frame(reply))


def _load(directory: Path, table: ItemTable | None) -> Bundle:
    bundle = load_bundle(directory)
    if bundle.bundle_id != directory.name:
        raise BadInputError(f"its content is that of bundle {bundle.bundle_id}: the manifest was changed")
    warm_up(bundle, table)
    return bundle


def _receive(channel: socket.socket) -> Question | None:
    """Read one message; None at the end."""
    head = _exactly(channel, LENGTH.size)
    if head is None:
        return None
    body = _exactly(channel, LENGTH.unpack(head)[0])
    return None if body is None else decode_question(body)


def _exactly(channel: socket.socket, length: int) -> bytearray | None:
    data = bytearray(length)
    view, got = memoryview(data), 0
    while got < length:
        read = channel.recv_into(view[got:])
        if not read:
            return None
        got += read
    return data


def _end_with(parent: int) -> None:
    """Have the kernel end this process with the API's, whatever either is doing at that moment."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
