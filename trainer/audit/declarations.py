"""What is declared of a run: by options, by a TOML file, by a karat run's configuration, by the text around its table.

From text, only forms that say what they mean are read, each with its line: flags (`--total-steps 1000`), assignments
(`max_steps = 1000`), and stated phases ("Decay: Steps 800-2000 (cosine 0.02 to 0.002)"). Flags and assignments count before
what is stated in a summary; where they differ, the difference itself is reported.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from karat.core.errors import ConfigError
from karat.invariants.run.catalogue import find_rule
from karat.invariants.run.finding import SLUGS
from karat.invariants.run.intent import KINDS, Intent, merged
from karat.invariants.run.spec import Schedule, Spec, read_spec
from karat.trainer.audit.assemble import number
from karat.trainer.config_file import read_config

_COUNT = r"(\d[\d,_]*)"
_RATE = r"(\d+\.?\d*(?:[eE][+-]?\d+)?)"
_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("total_steps", r"(?:--|\b)(?:total|max|train)[-_]steps(?:\s*[=:]\s*|\s+)", _COUNT),
    ("warmup", r"(?:--|\b)(?:num[-_])?warmup[-_]steps(?:\s*[=:]\s*|\s+)", _COUNT),
    ("peak", r"--(?:lr|learning[-_]rate|max[-_]lr)(?:\s*=\s*|\s+)", _RATE),
    ("floor", r"(?:--|\b)min[-_]lr(?:\s*[=:]\s*|\s+)", _RATE),
    ("vocab", r"(?:--|\b)vocab[-_]size(?:\s*[=:]\s*|\s+)", _COUNT),
)
_STATED: tuple[tuple[str, str, str], ...] = (
    ("total_steps", r"\btotal steps\b[\s*|:]{1,12}", _COUNT),
    ("vocab", r"\bvocabulary(?: size)?\b[\s*|:]{1,12}", _COUNT),
    ("reduction", r"\bloss reduction\b[\s*|:]{1,12}", r"(\d+\.?\d*)\s*%"),
)
_KIND = re.compile(r"\bschedule\b[^\n]{0,40}?\b(WSD|cosine|linear|constant)\b", re.IGNORECASE)
_PHASE = re.compile(
    r"\b(warm-?up|stable|plateau|decay)\b[\s*:]{1,12}steps?\s+"
    + _COUNT + r"\s*(?:-|–|—|to)\s*" + _COUNT + r"(?:\s*\(([^)\n]*)\))?",
    re.IGNORECASE,
)  # fmt: skip
KEYS = ("schedule", "decay", "peak", "floor", "warmup", "stable_end", "vocab", "reduction")
"""Keys beside those of Spec: the options of the command, underscores for dashes."""
JUDGED = ("total_steps", "schedule", "restarts", "classes", "lr_range", "suppress")
"""Keys of Spec that a log can be judged by."""


def declared_in_text(text: str) -> Intent:
    """What a document says of its run, each with its line; the first of its kind counts, the others are compared with it."""
    found = [i for name, before, value in _FLAGS for i in _every(text, name, before, value, "")]
    stated = [i for name, before, value in _STATED for i in _every(text, name, before, value, "stated, ")]
    kinds = [_one("schedule", m[1].lower(), text, m.start(), "stated, ") for m in _KIND.finditer(text)]
    phases = [intent for m in _PHASE.finditer(text) for intent in _phase(text, m)]
    return merged((*found, *kinds, *phases, *stated))


def _every(text: str, name: str, before: str, value: str, how: str) -> list[Intent]:
    pattern = re.compile(before + value, re.IGNORECASE)
    read = [(m, number(m[1].rstrip(",_").replace("_", ""))) for m in pattern.finditer(text)]
    counts = name in ("total_steps", "warmup", "vocab")
    return [_one(name, int(x) if counts else x, text, m.start(), how) for m, x in read if x is not None]


def _one(name: str, value: Any, text: str, at: int, how: str) -> Intent:
    place = f"{how}line {text.count(chr(10), 0, at) + 1}"
    make: Callable[..., Intent] = Intent
    return make(**{name: value}, where={name: place})


def _phase(text: str, match: re.Match[str]) -> list[Intent]:
    """What one stated phase declares: its ends, the rates in its brackets, and the form of the decay."""
    kind, first, last = match[1].lower(), int(match[2].replace(",", "")), int(match[3].replace(",", ""))
    inside = match[4] or ""
    rates = [float(x) for x in re.findall(r"(?<![\w.])\d+\.?\d*(?:[eE][+-]?\d+)?(?![\w.])", inside)]

    def one(name: str, value: Any) -> Intent:
        return _one(name, value, text, match.start(), "stated, ")

    if kind.startswith("warm"):
        return [one("warmup", last), *(one("peak", rates[-1]) for _ in rates[:1])]
    if kind != "decay":
        return [one("stable_end", last), *(one("peak", rates[0]) for _ in rates[:1])]
    said = [one("stable_end", first), one("decay_end", last)]
    said += [one("decay", form) for form in ("cosine", "linear") if form in inside.lower()]
    return said + ([one("peak", rates[0]), one("floor", rates[-1])] if len(rates) > 1 else [])


def of_spec(path: Path) -> Intent:
    """The declarations of a TOML file: keys of `Spec`, as watch and preflight read them, and the options of the command.

    Keys of Spec that a log cannot be judged by are left out, and named. ConfigError for any other key, with the nearest.
    """
    required = f"a TOML file with keys of Spec or some of {', '.join(KEYS)}"
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"the declarations {path} cannot be read: {why}", required=required) from None
    own = {key: value for key, value in table.items() if key in KEYS and not isinstance(value, (dict, list))}
    wrong = [_unknown(key) for key in table if key not in own and key not in Spec.model_fields]
    wrong += [f"{key} = {value!r}"[:60] for key, value in table.items() if isinstance(value, bool) and key in JUDGED]
    wrong += [f"{key} = {value!r}"[:60] for key, value in own.items() if not _fits(key, value)]
    if wrong:
        next_step = 'such as: total_steps = 1000, schedule = "wsd", peak = 0.02, restarts = [500]'
        raise ConfigError(f"{path}: {', '.join(wrong)} cannot be used", required=required, next_step=next_step)
    try:
        spec = read_spec({key: value for key, value in table.items() if key not in own})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.seen}", required=required, next_step=error.next_step) from None
    _require_rules(spec)
    make: Callable[..., Intent] = Intent
    return merged((make(**own, where=dict.fromkeys(own, str(path))), _of(spec, str(path))))


def _of(spec: Spec, place: str) -> Intent:
    """The part of a spec that a log can be judged by."""
    values: dict[str, Any] = {"total_steps": spec.total_steps, "restarts": spec.restarts, "vocab": spec.classes}
    values["lr_range"] = spec.lr_range
    if isinstance(spec.schedule, Schedule):
        shape = spec.schedule
        values |= {"schedule": shape.kind, "peak": shape.peak, "warmup": shape.warmup}
        if shape.kind != "constant":
            values |= {"floor": shape.floor, "decay_end": shape.total}
        if shape.kind == "wsd":
            values |= {"stable_end": shape.stable_end, "decay": shape.decay}
    given = {name: value for name, value in values.items() if value not in (None, ())}
    make: Callable[..., Intent] = Intent
    left_out = tuple(name for name in Spec.model_fields if name in spec.model_fields_set and name not in JUDGED)
    return make(**given, where=dict.fromkeys(given, place), suppress=spec.suppress, left_out=left_out)


def _require_rules(spec: Spec) -> None:
    """ConfigError, with the nearest names, for a suppression of a rule that there is not."""
    for suppression in spec.suppress:
        if suppression.rule not in SLUGS and suppression.rule not in SLUGS.values():
            find_rule(suppression.rule)


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, [*KEYS, *Spec.model_fields], n=1, cutoff=0.5)
    return f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _fits(key: str, value: Any) -> bool:
    """Whether a value has the type of its key."""
    if key == "schedule":
        return value in KINDS
    if key == "decay":
        return value in ("cosine", "linear")
    return type(value) is int or (key in ("peak", "floor", "reduction") and type(value) is float)


def of_karat_run(log: Path) -> Intent:
    """What the config.toml beside a karat run's log.jsonl declares; nothing where there is none."""
    folder = log if log.is_dir() else log.parent
    path = folder / "config.toml"
    if not path.is_file() or not (folder / "log.jsonl").is_file() or log.name not in ("log.jsonl", folder.name):
        return Intent()
    config = read_config(path, [])
    values: dict[str, Any] = {"total_steps": config.steps, "schedule": config.optim.schedule, "warmup": config.warmup,
              "peak": config.optim.lr, "floor": config.optim.lr * config.optim.floor}  # fmt: skip
    if config.optim.schedule == "wsd":
        values["stable_end"] = config.stable_end
    return Intent(**values, where=dict.fromkeys(values, "config.toml of the run"))
