"""Whether a mutant returns what the original does on the whole domain that obligations declare: decided by Z3.

A domain is an obligation's hypotheses and the arguments with which it calls the function. On it the original and the
mutant are run on the same symbolic arguments, and their results must be equal on every path. It counts when the
mutated function is called there with a symbolic argument. The domain of a law over the reals does not count alone:
a function that runs on floats must be shown equal on doubles (or integers, or bits) too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

import z3

from karat.core.evidence import Grade
from karat.core.obligation import BitLaw, FloatLaw, Formula, Obligation
from karat.proofs.engines import ENGINES
from karat.proofs.exploration import flatten
from karat.proofs.machine_carriers import DoubleSym
from karat.proofs.symbolic import Opaque, SBool


def equivalent(obligations: Sequence[Obligation], changed: ModuleType, name: str, rebound: Callable[[Any], Any]) -> str:
    """How it was shown, or nothing. The domains are those of the obligations about the function itself, if there are any."""
    direct = [o for o in obligations if any(rebound(f) is vars(changed).get(name) for f in o.about)]
    shown: list[str] = []
    exactly = False
    for obligation in direct or obligations:
        answer = _on_domain(obligation, changed, name, rebound)
        if answer is None:
            continue
        if not answer:
            return ""
        shown.append(obligation.id)
        exactly = exactly or not isinstance(obligation, Formula) or set(obligation.variables.values()) == {"int"}
    if not exactly:
        return ""
    return f"Z3 shows it equal on the domain of {', '.join(shown[:4])}{' …' if len(shown) > 4 else ''}"


def _on_domain(obligation: Obligation, changed: ModuleType, name: str, rebound: Callable[[Any], Any]) -> bool | None:
    """True: shown equal; False: not shown; None: the obligation does not call the mutated function on symbols."""
    pairs: list[tuple[Any, Any]] = []
    mutated = vars(changed)[name]
    reached = False

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal reached
        reached = reached or any(isinstance(x, Opaque) for x in flatten(list(arguments)))
        return mutated(*arguments, **named)

    def both(original: Any) -> Any:
        mutant = watched if rebound(original) is mutated else rebound(original)
        if not isinstance(original, FunctionType):
            return original

        def called(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            pairs.append((result, mutant(*arguments, **named)))
            return result

        return called

    about = tuple(both(f) for f in obligation.about)

    def same(v: Any, *functions: Any) -> Any:
        pairs.clear()
        if isinstance(obligation, BitLaw):
            obligation.show(v, z3, *about)
        elif isinstance(obligation, (Formula, FloatLaw)):
            obligation.show(v, *about)
        return [_equal(a, b) for x, y in pairs for a, b in zip(flatten(x), flatten(y), strict=True)]

    def same_bits(v: Any, solver: Any, *functions: Any) -> Any:
        return SBool(z3.And(z3.BoolVal(True), *[SBool.lift(c) for c in same(v)]))

    if not isinstance(obligation, (BitLaw, Formula, FloatLaw)):
        return None
    question = dataclasses.replace(obligation, show=same_bits if isinstance(obligation, BitLaw) else same)
    vars(changed)[name] = watched  # where the other functions of the module call it
    try:
        outcome = ENGINES[type(obligation)](question, thorough=False)
    except (ArithmeticError, ValueError, TypeError, AttributeError):
        return False
    finally:
        vars(changed)[name] = mutated
    if not reached:
        return None
    return outcome.grade is Grade.PROVED


def _equal(a: Any, b: Any) -> Any:
    """Whether two results are the same, symbolic or not: of doubles the same bits but for NaN, so -0.0 is not 0.0."""
    if isinstance(a, DoubleSym) or isinstance(b, DoubleSym):
        double = a if isinstance(a, DoubleSym) else b
        return SBool(double.lift(a) == double.lift(b))
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)
    return a == b
