"""One engine per kind of obligation."""

from __future__ import annotations

from collections.abc import Callable

from karat.core.obligation import BitLaw, Exact, Exhaustive, FloatLaw, Formula, Identity, Obligation, Property, Sweep
from karat.proofs.engines.bits_engine import prove_bit_law
from karat.proofs.engines.exact_engine import decide_exact, decide_exhaustive
from karat.proofs.engines.hypothesis_engine import fuzz
from karat.proofs.engines.sweep_engine import sweep
from karat.proofs.engines.sympy_engine import prove_identity
from karat.proofs.engines.z3_engine import prove_float_law, prove_formula
from karat.proofs.exploration import Outcome

ENGINES: dict[type[Obligation], Callable[..., Outcome]] = {
    Formula: prove_formula,
    FloatLaw: prove_float_law,
    BitLaw: prove_bit_law,
    Identity: prove_identity,
    Exact: decide_exact,
    Exhaustive: decide_exhaustive,
    Property: fuzz,
    Sweep: sweep,
}
