import sys
from importlib.util import find_spec

if __name__ != "karat.proofs":
    raise ImportError(
        f"this folder is the package karat.proofs, imported here as {__name__!r}: "
        "write 'from karat.proofs import ...' after 'pip install -e .'"
    )

if any(find_spec(name) is None for name in ("z3", "sympy", "hypothesis")):
    print(
        "karat.proofs: z3, sympy or hypothesis is not installed\n  next      pip install 'karat[prove]'",
        file=sys.stderr,
    )
    raise SystemExit(2)
