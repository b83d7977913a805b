"""Frozen dataclasses to and from plain dicts, JSON and TOML: strict, so that a misspelt key never does nothing.

TOML file -> load_toml -> dict -> from_dict -> dataclass -> to_dict -> dict -> run.json
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from firstlight.errors import ConfigError, Problems

T = TypeVar("T")

ABSENT = "(absent)"
"""Stands in `differences` for a key that one side does not have."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Question that names the choice nearest to a misspelt word, or an empty string where none is near.

    Case, and ``-`` for ``_``, do not count.

    >>> did_you_mean("dept", ["depth", "data"])
    "did you mean 'depth'?"
    >>> did_you_mean("xyz", ["depth", "data"])
    ''
    """
    by_key = {_plain(choice): choice for choice in choices}
    near = difflib.get_close_matches(_plain(word), by_key, n=1, cutoff=0.6)
    return f"did you mean {by_key[near[0]]!r}?" if near else ""


def load_toml(path: Path) -> dict[str, Any]:
    """Values of a TOML file. Keys may be written with ``-`` or ``_``; the result has ``_``.

    Raises ConfigError where the file is missing, cannot be read, is not TOML (with line and column), or says a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise ConfigError(f"no config file {path}", hint=near or "give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}", hint="give a TOML file in UTF-8") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}", hint='a line looks like: depth = 4, or run = "mine"'
        ) from None
    return _with_underscores(values, where=str(path))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from plain values, nested ones included. ``where`` names the source in messages.

    An integer is taken for a float field; nothing else is converted except text to Path and a list to a tuple or set.
    Raises ConfigError that names every unknown key, missing key and value of a wrong type at once.
    """
    problems = Problems()
    made = _make(cls, values, where, "", problems)
    problems.raise_if_any()
    return made


def to_dict(value: Any) -> Any:
    """Plain JSON values of a dataclass: dicts, lists, text, numbers. Paths become text, tuples and sets become lists.

    Raises ConfigError for a value that JSON cannot hold, such as a non-finite number.
    """
    return _plain_value(value, "")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, as (key, old, new), sorted by key; nested keys are dotted; a missing side is ABSENT.

    >>> differences({"depth": 4, "model": {"n_embd": 256}}, {"depth": 6, "model": {"n_embd": 256}})
    [('depth', 4, 6)]
    """
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += [(f"{key}.{inner}", a, b) for inner, a, b in differences(before, after)]
        elif _comparable(before) != _comparable(after):
            found.append((key, before, after))
    return found


def _plain(word: str) -> str:
    return word.strip().lstrip("-").replace("-", "_").casefold()


def _comparable(value: Any) -> Any:
    # JSON turns tuples into lists; that is no difference. True == 1 in Python; to a person it is one.
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return ("bool", value) if isinstance(value, bool) else value


def _with_underscores(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in result:
            raise ConfigError(f"{name!r} is said twice in {where}, once with - and once with _", hint="keep one")
        result[name] = _with_underscores(value, where) if isinstance(value, Mapping) else value
    return result


def _make(cls: Any, values: Mapping[str, Any], where: str, prefix: str, problems: Problems) -> Any:
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if not isinstance(values, Mapping):
        problems.add(
            f"{prefix.rstrip('.') or 'the top level'} in {where} is {values!r}",
            hint="a table of keys and values is expected",
        )
        return None
    for key in values:
        if key not in fields:
            near = did_you_mean(key, fields)
            problems.add(f"unknown key '{prefix}{key}' in {where}", hint=near or f"known keys: {', '.join(fields)}")
    arguments: dict[str, Any] = {}
    before = len(problems)
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(values[name], hints[name], where, f"{prefix}{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.add(f"key '{prefix}{name}' is missing in {where}", hint=f"it is {_type_name(hints[name])}")
    if len(problems) > before:
        return None
    return cls(**arguments)


def _convert(value: Any, wanted: Any, where: str, key: str, problems: Problems) -> Any:
    """The value as the wanted type, or None after a problem was added."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        for option in options:
            attempt = Problems()
            converted = _convert(value, option, where, key, attempt)
            if not len(attempt):
                return converted
        if len(options) == 1:
            return _convert(value, options[0], where, key, problems)
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        near = did_you_mean(value, map(str, arguments)) if isinstance(value, str) else ""
        problems.add(f"{key} = {value!r} in {where}", hint=near or f"one of {', '.join(map(str, arguments))}")
        return None
    elif dataclasses.is_dataclass(wanted):
        return _make(wanted, value, where, f"{key}.", problems)
    elif origin in (list, tuple, set, frozenset) and isinstance(value, list | tuple | set | frozenset):
        items = list(value)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            inner = list(arguments)
            if len(items) != len(inner):
                problems.add(f"{key} in {where} has {len(items)} items", hint=f"{len(inner)} are expected")
                return None
        else:
            inner = [arguments[0]] * len(items)
        pairs = enumerate(zip(items, inner, strict=True))
        return origin(_convert(item, kind, where, f"{key}[{i}]", problems) for i, (item, kind) in pairs)
    elif (wanted is dict or origin is dict) and isinstance(value, Mapping):
        kind = arguments[1] if arguments else Any
        return {name: _convert(item, kind, where, f"{key}.{name}", problems) for name, item in value.items()}
    elif wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif wanted is Path and isinstance(value, str | Path):
        return Path(value)
    elif isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    problems.add(f"{key} = {value!r} in {where} is {type(value).__name__}", hint=f"it must be {_type_name(wanted)}")
    return None


def _type_name(wanted: Any) -> str:
    if wanted is type(None):
        return "null"
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(_type_name(option) for option in get_args(wanted))
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(map(str, get_args(wanted)))
    names = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", Path: "a path (text)"}
    return names.get(wanted) or getattr(wanted, "__name__", str(wanted))


def _plain_value(value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain_value(getattr(value, f.name), f"{key}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain_value(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain_value(item, key) for item in value)
    if isinstance(value, list | tuple):
        return [_plain_value(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(
        f"{key.lstrip('.') or 'the value'} = {value!r} cannot be written as JSON",
        hint="use finite numbers, text, lists or tables",
    )
