"""Settings of a training as a YAML file: what `larder search` writes and `larder train --settings` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped] # its stubs are not among our dependencies

from feature_repo.errors import BadInputError, NotFoundError
from training.generators.contract import GeneratorFit, Ready
from training.line_up import LineUp
from training.rankers.registry import ranker_params
from training.train import TrainConfig

One = TypeVar("One")

#: What a file may set. All else is the protocol (what is predicted, on which cut) or a matter of the shop's policy.
_TOP: Final = ("windows", "stride", "candidates", "fusion")
_SECTIONS: Final = (*_TOP, "sampling", "ranker", "generators")


def read_training_settings(path: Path) -> dict[str, Any]:
    """Read a settings file.

    Raises
    ------
    NotFoundError
        If there is no such file.
    BadInputError
        If it is no YAML mapping.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"no settings file {path}; `larder search` writes one") from None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadInputError(f"{path} must hold settings by name, such as `ranker: {{depth: 6}}`")
    return found


def configured(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return a configuration with some settings replaced.

    Parameters
    ----------
    values
        `windows`, `stride`, `candidates` and `fusion`; `sampling` and `ranker`: settings by name, `ranker.kind` one of
        `larder train --ranker`; `generators`: by the generator's name its settings, or false to leave it out.

    Raises
    ------
    BadInputError
        For a name that does not exist, or a value of another type; the message says what there is.
    """
    for name in values:
        if name not in _SECTIONS:
            raise BadInputError(f"no setting {name!r} of a training; there are: {', '.join(_SECTIONS)}")
    config = _set(config, {name: value for name, value in values.items() if name in _TOP}, "")
    if "sampling" in values:
        config = replace(config, sampling=_set(config.sampling, _section(values, "sampling"), "sampling."))
    if "ranker" in values:
        wanted = dict(_section(values, "ranker"))
        ranker: Any = ranker_params(str(wanted.pop("kind"))) if "kind" in wanted else config.ranker
        config = replace(config, ranker=_set(ranker, wanted, "ranker."))
    return replace(config, line_up=_line_up(config.line_up, _section(values, "generators")))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted names into the sections of a file.

    Examples
    --------
    >>> nested({"windows": 8, "generators.als.factors": 32, "generators.ease": False})
    {'windows': 8, 'generators': {'als': {'factors': 32}, 'ease': False}}

    What a generator is set to matters only where it is in the line-up:

    >>> nested({"generators.als.factors": 32, "generators.als": True})
    {'generators': {'als': {'factors': 32}}}
    >>> nested({"generators.als.factors": 32, "generators.als": False})
    {'generators': {'als': False}}
    """
    out: dict[str, Any] = {}
    off = {name for name, value in flat.items() if value is False}
    for name, value in flat.items():
        *sections, last = name.split(".")
        if any(".".join(sections[:depth]) in off for depth in range(1, len(sections) + 1)):
            continue
        inner = out
        for section in sections:
            inner = inner.setdefault(section, {})
        if value is True and sections == ["generators"]:
            inner.setdefault(last, {})
        else:
            inner[last] = value
    return out


def settings_text(values: Mapping[str, Any], comment: str) -> str:
    """Return settings as a file's text, under a comment."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    body: str = yaml.safe_dump(dict(values), sort_keys=False)
    return "\n".join(lines) + "\n" + body


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise BadInputError(f"{name} must be settings by name, not {found!r}")
    return found


def _line_up(line_up: LineUp, wanted: Mapping[str, Any]) -> LineUp:
    names = [one.name for one in line_up]
    for name in wanted:
        if name not in names:
            raise BadInputError(f"no generator {name!r} in the line-up; there are: {', '.join(names)}")
    out = [_generator(one, wanted.get(one.name, {})) for one in line_up]
    kept = tuple(one for one in out if one is not None)
    if not kept:
        raise BadInputError("every generator is left out: there is nothing to rank")
    return kept


def _generator(one: GeneratorFit, wanted: object) -> GeneratorFit | None:
    if wanted is False:
        return None
    if not isinstance(wanted, dict):
        raise BadInputError(f"generators.{one.name} must be settings by name, or false, not {wanted!r}")
    prefix = f"generators.{one.name}."
    if not isinstance(one, Ready):
        return _set(one, wanted, prefix)
    quota = _set(one, {name: value for name, value in wanted.items() if name == "quota"}, prefix)
    inner = {name: value for name, value in wanted.items() if name != "quota"}
    return replace(quota, generator=_set(one.generator, inner, prefix))


def _set(one: One, wanted: Mapping[str, Any], prefix: str) -> One:
    """Replace plain fields of a dataclass, each by a value of its type."""
    if not wanted:
        return one
    if not is_dataclass(one) or isinstance(one, type):
        raise TypeError(f"{type(one).__name__} has no settings")
    hints = get_type_hints(type(one))
    plain = {f.name: hints[f.name] for f in fields(one) if f.init and _is_plain(hints[f.name]) and f.name != "name"}
    values: dict[str, Any] = {}
    for name, value in wanted.items():
        if name not in plain:
            raise BadInputError(f"no setting {prefix}{name}; there are: {', '.join(f'{prefix}{n}' for n in plain)}")
        values[name] = _checked(f"{prefix}{name}", value, plain[name])
    changed: One = replace(one, **values)
    return changed


def _is_plain(kind: Any) -> bool:
    return kind in (int, float, str, bool) or get_origin(kind) is Literal


def _checked(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise BadInputError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, not {value!r}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadInputError(f"{name} must be of type {kind.__name__}, not {value!r}")
    return value
