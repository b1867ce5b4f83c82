"""A mapping as it lies on disk: read, checked, and every part of it with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # its stubs are not among our dependencies
from pydantic import ValidationError

from feature_repo.adapters.mapping_spec import (
    EventFields,
    EventFile,
    ItemFields,
    ItemFile,
    Kind,
    MappingSpec,
    Money,
    Tags,
    Text,
    Time,
)
from feature_repo.errors import BadInputError, NotFoundError

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class MappingFile:
    """What a mapping says, and on which line."""

    path: Path
    spec: MappingSpec
    lines: dict[Location, int]

    def place(self, location: Location) -> str:
        """Return "shop.yaml line 9" for the part of the mapping at `location`, or the nearest part around it."""
        return _place(self.path, self.lines, location)

    def find(self, name: str, data_dir: Path) -> Path:
        """Return the path of a data file: beside the mapping, else in the directory of the real data."""
        beside = self.path.parent / name
        return beside if beside.exists() or not (data_dir / name).exists() else data_dir / name


def read_mapping(path: Path) -> MappingFile:
    """Read and check a mapping.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        If it is not YAML, or says something a mapping cannot say; with the line.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no mapping {path}")
    try:
        node = yaml.compose(path.read_text("utf-8"), yaml.BaseLoader)
        content = yaml.load(path.read_text("utf-8"), yaml.BaseLoader)  # noqa: S506 - BaseLoader makes nothing but text
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    lines = dict(_lines(node, ())) if node is not None else {}
    if not isinstance(content, dict):
        raise BadInputError(f"{path.name}: a mapping begins with keys such as name: and events:")
    try:
        spec = MappingSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInputError(f"{_place(path, lines, first['loc'])}: {_sentence(first)}") from None
    if not spec.events:
        raise BadInputError(f"{_place(path, lines, ('events',))}: name at least one file of events")
    return MappingFile(path, spec, lines)


def _lines(node: Any, at: Location) -> Iterator[tuple[Location, int]]:
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*at, key.value))
            yield (*at, key.value), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, (*at, number))


def _place(path: Path, lines: dict[Location, int], location: Location) -> str:
    if ("events", 0) not in lines:  # one file of events may stand without a list: its part has no number then
        location = tuple(part for part in location if part != 0)
    for length in range(len(location), 0, -1):
        if location[:length] in lines:
            return f"{path.name} line {lines[location[:length]]}"
    return path.name


def _sentence(error: Any) -> str:
    key = str(error["loc"][-1]) if error["loc"] else "it"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _KEYS, 1)
        return f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    if error["type"] == "model_type":
        return f"{key}: write a column's name, or keys such as column: and constant:"
    message = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    return f"{key}: {message}" + (
        f", not {given!r}" if isinstance(given, str) and error["type"] != "value_error" else ""
    )


_KEYS = sorted(
    {
        name
        for model in (EventFields, ItemFields, EventFile, ItemFile, MappingSpec, Text, Tags, Time, Money, Kind)
        for name in model.model_fields
    }
)
