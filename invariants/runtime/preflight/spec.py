"""What the user declares, so that nothing has to be guessed: a small record, every name of it checked on the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from karat.core.errors import ConfigError

Text = Annotated[str, Field(min_length=1)]


class Suppression(BaseModel):
    """A rule that is not to speak, where, and why; it is kept in the report."""

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
    """Parameters that are not to be trained, although they may have requires_grad."""
    detached: tuple[Text, ...] = ()
    """Parameters, or names of loss terms, that are to get no gradient."""
    tied: tuple[tuple[Text, Text], ...] = ()
    """Pairs of parameter names that must be one tensor."""
    accumulation: int = Field(default=1, ge=1)
    """Batches to an optimizer step. Kept for the report: the loop itself is not seen before it runs."""
    network: str = ""
    """The submodule whose inputs and outputs are probed; empty: the model itself."""
    example: tuple[Any, ...] | dict[str, Any] | None = None
    """Arguments of the network's forward; None: those with which loss_fn calls it."""
    suppress: tuple[Suppression, ...] = ()
    seconds: float = Field(default=4.5, gt=0, le=3600)
    """Time budget. What it leaves no time for is listed as not run."""

    def suppression(self, rule: str, where: str) -> Suppression | None:
        """The first suppression that covers a finding."""
        return next((s for s in self.suppress if s.rule == rule and fnmatchcase(where, s.where)), None)


def read_spec(given: Spec | Mapping[str, Any] | None) -> Spec:
    """The spec, made of a mapping where one was given; ConfigError lists all that is wrong with it."""
    if given is None or isinstance(given, Spec):
        return given or Spec()
    try:
        return Spec.model_validate(dict(given))
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors(include_url=False)]
        raise ConfigError(
            "the spec cannot be used: " + "; ".join(problems),
            required=f"keys of Spec: {', '.join(Spec.model_fields)}",
            next_step="help(karat.invariants.runtime.preflight.Spec)",
        ) from None


def covered(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name is covered by a pattern, or lies below a module that is."""
    parts = name.split(".")
    ancestors = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(fnmatchcase(ancestor, pattern) for pattern in patterns for ancestor in ancestors)


def require_names(spec: Spec, parameters: Iterable[str], modules: Iterable[str], rules: Iterable[str]) -> None:
    """ConfigError for a pattern that covers no parameter, or a name of a parameter, module or rule that is none.

    `detached` may also name loss terms, which are not known before the loss is: it is checked against both later.
    """
    parameters, modules, rules = list(parameters), list(modules), list(rules)
    for pattern in spec.frozen:
        if not any(covered(name, (pattern,)) for name in parameters):
            raise _unknown("Spec.frozen", pattern, [*parameters, *modules], "a parameter of the model")
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
