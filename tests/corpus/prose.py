"""A small text with a structure to find."""

import random


def prose(seed: int, words: int) -> bytes:
    """Words of a few syllables, with signs, digits and letters beyond ASCII."""
    source = random.Random(seed)
    parts = ("ka", "rat", "mol", "é", "ta", "zu", "ξ", "0", "17", "(", ").", "_", "\n", "    ")
    return " ".join("".join(source.choices(parts, k=source.randint(1, 4))) for _ in range(words)).encode()
