if __name__ != "karat.proofs":
    raise ImportError(
        f"this folder is the package karat.proofs, imported here as {__name__!r}: "
        "write 'from karat.proofs import ...' after 'pip install -e .'"
    )
