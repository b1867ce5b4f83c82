"""How ingest reads and writes the rows of a micro-batch: several short scripts, whose order makes any part harmless.

1. The index gets the entities that may have had no row.
2. Rows of users and items, recent events and the catalogue.
3. Rows of pairs and affinities.
4. The watermark moves, and the change feed gets the items: from now on the batch counts as folded.

Each step begins when all of the one before is written. A batch that stops anywhere is folded again by whoever comes
next: rows keep the `seq` they hold and skip what they have; what the fold takes from pairs to count in users and items
is still there, as pairs come last. On one server every script compares the watermark first, so a writer that comes back
from a pause does nothing more. On a cluster only step 4 can (the rows' slots do not hold the watermark); the rows of
such a writer are states of the same fold, written unless newer ones are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha1
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError

from feature_repo.micro_batch import MicroBatch
from feature_repo.online_keys import changed_key, index_entries, watermark_key
from feature_repo.packed_commands import ask
from feature_repo.redis_commands import Command, is_cluster
from feature_repo.redis_scripts import script_text
from feature_repo.row_scripts import Script, ViewRows, scripts_of
from feature_repo.row_writer import store_batches

_FENCED: Final = -1


class BatchWriter:
    """Reads and writes the rows of micro-batches.

    Parameters
    ----------
    client
        Client of the project's Redis for raw bytes.
    project
        Name of the project.
    """

    def __init__(self, client: redis.Redis, project: str) -> None:
        self._client = client
        self._project = project
        self._text = script_text("ingest_write")
        self._sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def read(self, work: MicroBatch) -> list[Any]:
        """Return the answers to `work.read_commands()`."""
        return ask(self._client, work.read_commands())

    def write(self, work: MicroBatch, expected: int, watermark: int) -> bool:
        """Write a folded batch.

        Parameters
        ----------
        expected
            The watermark the rows were read at.
        watermark
            `seq` of the last entry of the batch.

        Returns
        -------
        bool
            False if another writer moved the watermark: the batch is not, or not all, written by us.

        Raises
        ------
        redis.exceptions.RedisError
            If Redis fails; part of the batch may be written, and folding it again is safe.
        """
        first, last = work.rows()
        if is_cluster(self._client):
            store_batches(self._client, self._project, [*first, *last])
        else:
            ask(self._client, list(_index_commands(self._project, work.new)))
            for step in (first, last):
                if not self._run([script for batch in step for script in self._fenced(batch, expected)]):
                    return False
        items = work.changed_items
        keys = [watermark_key(self._project), changed_key(self._project)]
        return self._run([(keys, [expected, watermark, len(items), *items, 0])])

    def _fenced(self, batch: ViewRows, expected: int) -> Iterator[tuple[list[Any], list[Any]]]:
        head = [watermark_key(self._project), changed_key(self._project)]
        for keys, arguments in scripts_of(self._project, batch):
            yield [*head, *keys], [expected, "", 0, *arguments]

    def _run(self, scripts: Sequence[tuple[list[Any], list[Any]] | Script]) -> bool:
        """Run scripts; False if one was fenced off."""
        commands = [("EVALSHA", self._sha, len(keys), *keys, *arguments) for keys, arguments in scripts]
        try:
            answers = ask(self._client, commands)
        except NoScriptError:  # a new server, or somebody flushed the scripts; those that ran may run again
            self._client.script_load(self._text)
            answers = ask(self._client, commands)
        return _FENCED not in answers


def _index_commands(project: str, new: Sequence[tuple[str, list[str]]]) -> Iterator[Command]:
    for view, entities in new:
        for key, fields in index_entries(project, view, entities):
            yield "HSET", key, *(word for field in fields for word in (field, b""))
