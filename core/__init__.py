if __name__ != "karat.core":
    raise ImportError(
        f"this folder is the package karat.core, imported here as {__name__!r}: "
        "write 'from karat.core import ...' after 'pip install -e .'"
    )
