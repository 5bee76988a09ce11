"""A configuration comes from defaults, a preset, a TOML file, `--set` pairs and arguments; later ones win.

Every problem of the result is listed in one ConfigError, each with its dotted name, what was required, what was seen
and where it was written. `to_toml` writes the resolved record as TOML that reads back equal.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from karat.core.errors import ConfigError
from karat.trainer.config import RunConfig, dotted
from karat.trainer.presets import preset

Table = dict[str, Any]

NEXT = "trainer run --print-config shows every key with its value"
LEAST_LIKENESS = 0.6  # difflib's own default: less alike than that is no suggestion
_KINDS = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", dict: "a table", list: "a list"}


def read_config(file: Path | None, sets: Sequence[str], **direct: Any) -> RunConfig:
    """The configuration of a run; ConfigError lists all that is wrong with it.

    sets: `a.b=value` pairs, the value in TOML or else taken as text. direct: keys by name (`policy="strict"`, or
    `**{"model.nca": False}`); one that is None is not given.
    """
    table: Table = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    if file is not None:
        _merge(table, _read_toml(file), origins, f"in {file}")
    for pair in sets:
        key, problem = _key_of(pair)
        if problem:
            problems.append(problem)
        else:
            _merge(table, _nested(key, parse_value(pair.partition("=")[2])), origins, "--set")
    for name, value in direct.items():
        if value is not None:
            _merge(table, _nested(name, value), origins, "an argument")
    if "preset" in table:
        laid: Table = {}
        _merge(laid, preset(table["preset"]), {}, "")
        under = dict.fromkeys(dotted(laid), f"in the preset {table['preset']}")
        _merge(laid, table, {}, "")
        table, origins = laid, under | origins
    try:
        config = RunConfig.model_validate(table, strict=True)
    except ValidationError as error:
        problems += [_problem(entry, origins) for entry in error.errors(include_url=False)]
    if not problems:
        return config
    if len(problems) == 1:
        raise ConfigError(problems[0], next_step=NEXT)
    seen = "\n".join([f"{len(problems)} settings cannot be used:", *(f"  {problem}" for problem in problems)])
    raise ConfigError(seen, next_step=NEXT)


def parse_value(text: str) -> Any:
    """`text` as a TOML number, boolean, string or inline table; anything else (a path, a date) is the text itself."""
    text = text.strip()
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML, an integer of over 4300 digits, a nest of brackets
        return text
    value = table["value"]
    return value if len(table) == 1 and isinstance(value, (bool, int, float, str, dict)) else text


def to_toml(config: RunConfig) -> str:
    """The resolved configuration as TOML: `read_config` of it gives an equal record. A key that is none is left out."""
    record = config.model_dump()
    sections = {key: value for key, value in record.items() if isinstance(value, dict)}
    top = {key: value for key, value in record.items() if key not in sections}
    blocks = [_assignments(top)]
    blocks += [f"[{name}]\n{_assignments(section)}" for name, section in sections.items()]
    return "\n".join(blocks)


def _assignments(table: Table) -> str:
    lines = (f"# {key} is not set" if value is None else f"{key} = {_literal(value)}" for key, value in table.items())
    return "".join(f"{line}\n" for line in lines)


def _literal(value: bool | int | float | str | Path) -> str:
    """One TOML value that reads back equal; float repr is the shortest that does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    # JSON's string is TOML's basic string, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(file: Path) -> Table:
    """The table of a TOML file; ConfigError for one that is missing, unreadable or malformed, with the line."""
    try:
        return tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        seen = f"the configuration {file} cannot be read: {error.strerror or error}"
        raise ConfigError(seen, required="a TOML file", next_step="check the path after --config") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        seen = f"{file} is not UTF-8 text (at line {line}, byte 0x{error.object[error.start]:02x})"
        raise ConfigError(seen, required="a TOML file", next_step=NEXT) from None
    except (ValueError, RecursionError) as error:
        seen = f"{file} is not TOML: {error}"
        raise ConfigError(seen, required='lines such as lr = 0.004 and data = "stdlib"', next_step=NEXT) from None


def _key_of(pair: str) -> tuple[str, str]:
    """(dotted key, problem) of a --set pair; one of them is empty."""
    key, equals, _ = pair.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals:
        return "", f"--set {pair}: must be key=value, such as model.d_model=256; no '=' was seen"
    if not all(parts):
        return "", f"--set {pair}: must be key=value, such as model.d_model=256; the key is {key.strip()!r}"
    return ".".join(parts), ""


def _nested(name: str, value: Any) -> Table:
    """{"a": {"b": value}} from "a.b"."""
    for part in reversed(name.split(".")):
        value = {part: value}
    table: Table = value
    return table


def _merge(table: Table, new: Mapping[str, Any], origins: dict[str, str], origin: str, prefix: str = "") -> None:
    """Lays `new` over `table`, key by key, and notes in origins where each key was written last."""
    for key, value in new.items():
        name = f"{prefix}{key}"
        origins[name] = origin
        if isinstance(value, Mapping):
            below = table[key] if isinstance(table.get(key), dict) else {}
            table[key] = below
            _merge(below, value, origins, origin, f"{name}.")
        else:
            table[key] = value


def _problem(entry: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors: name, what is required, what was seen, where."""
    name = ".".join(str(part) for part in entry["loc"])
    where = f" ({origins[name]})" if name in origins else ""
    if entry["type"] == "extra_forbidden":
        return f"{name}: unknown{_suggestion(name)}{where}"
    required = entry["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if entry["type"] == "model_type":
        required = f"must be a table of keys such as {name}.{_first_key(name)}"
    if isinstance(entry["input"], (RunConfig, dict)) and entry["type"] == "value_error":
        return f"{name}: {required}{where}" if name else required  # of several keys: the message has their values
    return f"{name}: {required}, got {_seen(entry['input'])}{where}"


def _seen(value: Any) -> str:
    kind = _KINDS.get(type(value), f"of type {type(value).__name__}")
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'}, {kind}"


def _known_names() -> list[str]:
    """Every section and every dotted key."""
    names = []
    for key, field in RunConfig.model_fields.items():
        names.append(key)
        if isinstance(field.default, BaseModel):
            names += [f"{key}.{below}" for below in type(field.default).model_fields]
    return names


def _first_key(section: str) -> str:
    return next(iter(dotted(RunConfig().model_dump()[section])))


def _suggestion(name: str) -> str:
    """The question after an unknown name: the nearest known one, whole or by its last part; empty if none is near."""

    def likeness(known: str) -> float:
        last = difflib.SequenceMatcher(None, name.split(".")[-1], known.split(".")[-1]).ratio()
        return max(difflib.SequenceMatcher(None, name, known).ratio(), 0.99 * last)

    nearest = max(_known_names(), key=likeness)
    return f"; did you mean {nearest}?" if likeness(nearest) >= LEAST_LIKENESS else ""
