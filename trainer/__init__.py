if __name__ != "karat.trainer":
    raise ImportError(
        f"this folder is the package karat.trainer, imported here as {__name__!r}: "
        "write 'from karat.trainer import ...' after 'pip install -e .'"
    )
