if __name__ != "karat.invariants":
    raise ImportError(
        f"this folder is the package karat.invariants, imported here as {__name__!r}: "
        "write 'from karat.invariants import ...' after 'pip install -e .'"
    )
