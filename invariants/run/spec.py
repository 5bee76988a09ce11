"""What the user declares of a run, so that nothing has to be guessed: one record for watch, preflight and the callbacks.

Every name in it is checked on the model. It is given in Python, as a mapping, or as a TOML file with the same keys.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from karat.core.errors import ConfigError
from karat.invariants.run.shapes import Shape

Text = Annotated[str, Field(min_length=1)]
Step = Annotated[int, Field(ge=0)]


class Schedule(BaseModel):
    """A declared learning-rate schedule, evaluated by the running formulas of core/formulas/schedule.py.

    Steps are optimizer updates from 0; rates are absolute, of the first parameter group. wsd: up to `warmup`, flat to
    `stable_end`, down to `floor` at `total`, in a straight line unless decay = "cosine". from_zero: the warm-up gives
    update 0 the rate 0, else peak / warmup.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["wsd", "cosine", "linear", "constant"]
    peak: float = Field(gt=0, allow_inf_nan=False)
    floor: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    warmup: Step = 0
    stable_end: Step | None = None
    total: int | None = Field(default=None, ge=1)
    decay: Literal["linear", "cosine"] = "linear"
    from_zero: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if self.kind != "constant" and self.total is None:
            raise ValueError(f"a {self.kind} schedule needs total, the step at which it ends")
        if self.kind == "wsd" and self.stable_end is None:
            raise ValueError("a wsd schedule needs stable_end, the step at which its decay starts")
        if self.floor > self.peak:
            raise ValueError(f"floor = {self.floor:g} is above peak = {self.peak:g}")
        marks = [m for m in (self.warmup, self.stable_end, self.total) if m is not None]
        if marks != sorted(marks):
            raise ValueError("warmup <= stable_end <= total is required")
        return self

    def rate(self, step: int) -> float:
        """The declared rate of update `step`; past the end it stays where the decay ended."""
        family = "wsd, cosine decay" if self.kind == "wsd" and self.decay == "cosine" else self.kind
        stable = self.stable_end if self.stable_end is not None and self.kind == "wsd" else self.warmup
        total = self.total if self.total is not None else self.warmup + 1
        return Shape(
            family, self.warmup, stable, max(total, stable + 1), self.peak, self.floor, 0, self.from_zero
        ).rate(step)


class Suppression(BaseModel):
    """A rule (its id or slug) that is not to speak, where, and why; it is kept in the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Text
    reason: Text
    where: Text = "*"
    """A pattern of module or parameter names, as in fnmatch."""


class Spec(BaseModel):
    """Declared intent. Everything may be left out: then less is checked, and the report says what was not.

    Patterns are those of fnmatch over parameter names (`backbone.*`); a module's name stands for all below it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @field_validator("frozen", "detached", "decay", "no_decay", "restarts", mode="before")
    @classmethod
    def _one_alone(cls, given: Any, info: ValidationInfo) -> Any:
        """One pattern, or one step, where several may stand; restarts = true for "any"."""
        if info.field_name == "restarts":
            return "any" if given is True else (given,) if type(given) is int else given
        return (given,) if isinstance(given, str) else given

    @field_validator("lr_range")
    @classmethod
    def _a_range(cls, given: tuple[float, float] | None) -> tuple[float, float] | None:
        if given is not None and not given[0] <= given[1]:
            raise ValueError(f"the lowest rate first: {given[0]:g} <= {given[1]:g} does not hold")
        return given

    causal: bool | None = None
    """Whether no output at position t may depend on an input after t. None: guessed from targets shifted by one."""
    batch_independent: bool | None = None
    """Whether in eval mode no sample's output may depend on another sample. None: looked at, a finding is a WARN."""
    deterministic: bool | None = None
    """Whether in eval mode equal inputs must give equal outputs. None: looked at, a finding is a WARN."""
    classes: int | None = Field(default=None, ge=2)
    """Classes or vocabulary of the cross-entropy."""
    pretrained: bool = False
    """Whether the weights are trained already, so that the first loss may be far below ln(classes)."""
    frozen: tuple[Text, ...] = ()
    """Parameters that are not to be trained, although they may have requires_grad; with the running statistics of the
    norms that are covered, and buffers that are named in full."""
    detached: tuple[Text, ...] = ()
    """Parameters, or names of loss terms, that are to get no gradient."""
    tied: tuple[tuple[Text, Text], ...] = ()
    """Pairs of parameter names that must be one tensor."""
    accumulation: int | None = Field(default=None, ge=1)
    """Batches to an optimizer step, each with 1/accumulation of the weight; the last step of an epoch may have fewer."""
    total_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps that the run is to take, no more and no less."""
    schedule: Schedule | Callable[[int], float] | None = None
    """The rate of each update of the first group; the other groups keep their first ratio to it, or `group_ratios`."""
    group_ratios: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """The rate of each parameter group over the schedule's, in the order of the groups."""
    restarts: tuple[Step, ...] | Literal["any"] = ()
    """Steps at which the rate may rise after it fell; "any" where rises are meant throughout (cyclic rates)."""
    lr_range: tuple[float, float] | None = None
    """The lowest and highest rate that any group may have."""
    clip_norm: float | None = Field(default=None, gt=0)
    """The largest 2-norm of all gradients of an optimizer at its step, as clip_grad_norm_ leaves it."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    """The dtype that every trainable floating-point parameter is to have."""
    decay: tuple[Text, ...] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = ()
    """Parameters that are to have weight decay; or its value, which every matrix outside `no_decay` is to have."""
    no_decay: tuple[Text, ...] = ()
    """Parameters that are to have no weight decay."""
    ema: float | None = Field(default=None, ge=0, le=1)
    """The decay of the averaged model given as watch(ema=…): averaged <- ema * averaged + (1 - ema) * model."""
    padding: int | None = None
    """The token that pads: its positions are not to count in the loss."""
    ignore_index: int = -100
    """The target that the loss leaves out."""
    window: int = Field(default=20, ge=1)
    """Optimizer steps within which every trainable parameter is to get a gradient that is not all zero."""
    network: str = ""
    """The submodule whose inputs and outputs are probed; empty: the model itself."""
    example: tuple[Any, ...] | dict[str, Any] | None = None
    """Arguments of the network's forward; None: those with which loss_fn calls it."""
    suppress: tuple[Suppression, ...] = ()
    seconds: float = Field(default=4.5, gt=0, le=3600)
    """Time budget. What it leaves no time for is listed as not run."""

    def suppressed(self, names: Iterable[str], where: str) -> Suppression | None:
        """The first suppression that covers a finding of a rule with these names, its id and its slug."""
        return covering(self.suppress, names, where)


def covering(suppress: Iterable[Suppression], names: Iterable[str], where: str) -> Suppression | None:
    """The first suppression of a rule with one of these names, its id or its slug, at this place."""
    known = tuple(names)
    return next((s for s in suppress if s.rule in known and fnmatchcase(where, s.where)), None)


def read_spec(given: Spec | Mapping[str, Any] | str | Path | None) -> Spec:
    """The spec, made of a mapping or a TOML file where one was given; ConfigError lists all that is wrong with it."""
    if given is None or isinstance(given, Spec):
        return given or Spec()
    if isinstance(given, (str, Path)):
        given = _table(Path(given))
    if not isinstance(given, Mapping):
        raise ConfigError(f"spec is {type(given).__name__}", required="a Spec, a mapping, or the path of a TOML file")
    try:
        return Spec.model_validate(dict(given))
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors(include_url=False)]
        raise ConfigError(
            "the spec cannot be used: " + "; ".join(problems),
            required=f"keys of Spec: {', '.join(Spec.model_fields)}",
            next_step="help(karat.invariants.runtime.Spec)",
        ) from None


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"the spec {path} cannot be read: {why}", required="a TOML file with keys of Spec") from None


def covered(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name is covered by a pattern, or lies below a module that is."""
    parts = name.split(".")
    ancestors = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(
        fnmatchcase(ancestor, pattern) or fnmatchcase(f".{ancestor}", pattern)  # `*.bias` is any bias, the outermost too
        for pattern in patterns for ancestor in ancestors
    )  # fmt: skip


def require_names(
    spec: Spec, parameters: Iterable[str], modules: Iterable[str], rules: Iterable[str], buffers: Iterable[str] = ()
) -> None:
    """ConfigError for a pattern that covers no parameter, or a name of a parameter, module or rule that is none.

    `frozen` may also name buffers.

    `detached` may also name loss terms, which are not known before the loss is: it is checked against both later.
    """
    parameters, modules, rules = list(parameters), list(modules), list(rules)
    for field in ("frozen", "decay", "no_decay"):
        known = [*parameters, *buffers] if field == "frozen" else parameters
        patterns = getattr(spec, field)
        for pattern in patterns if isinstance(patterns, tuple) else ():
            if not any(covered(name, (pattern,)) for name in known):
                raise _unknown(f"Spec.{field}", pattern, [*parameters, *modules], "a parameter of the model")
    for name in (name for pair in spec.tied for name in pair):
        if name not in parameters:
            raise _unknown("Spec.tied", name, parameters, "a parameter of the model")
    if spec.network and spec.network not in modules:
        raise _unknown("Spec.network", spec.network, modules, "a module of the model")
    for suppression in spec.suppress:
        if suppression.rule not in rules:
            raise _unknown("Spec.suppress", suppression.rule, rules, "a rule")


def require_detached(spec: Spec, parameters: Iterable[str], terms: Iterable[str]) -> None:
    """ConfigError for a pattern of `detached` that covers neither a parameter nor a loss term."""
    names = [*parameters, *terms]
    for pattern in spec.detached:
        if not any(covered(name, (pattern,)) for name in names):
            raise _unknown("Spec.detached", pattern, names, "a parameter of the model or a term of the loss")


def _unknown(field: str, name: str, known: list[str], what: str) -> ConfigError:
    near = difflib.get_close_matches(name.rstrip(".*"), known, n=3, cutoff=0.5)
    return ConfigError(
        f"{field}: {name!r} is not {what}",
        required=f"one of {', '.join(known[:8])}{', …' if len(known) > 8 else ''}",
        next_step=f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "",
    )


def _problem(entry: Any) -> str:
    name = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(entry["loc"][0]), list(Spec.model_fields), n=1, cutoff=0.5)
        return f"there is no key {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    return f"{name}: {entry['msg']}"
