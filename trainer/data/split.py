"""Files are held out whole, and files that copy each other are held out together.

A split inside a file would test on the second half of what was trained on; a split between a file and its
vendored copy would do the same. So near copies form a group, a group is on one side, and which side follows
from the hash of the group's path and content: no seed, no order of a file system.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from karat.trainer.data.disjoint import WINDOW, window_hashes
from karat.trainer.data.manifest import sha256_hex

VALIDATION_SHARE = 0.05  # groups are held out until validation has this share of the bytes
LARGEST_GROUP_SHARE = 0.025  # of all bytes; a larger group is never held out, so validation ends in [5 %, 7.5 %)
LEAST_SHARE = 0.01  # below this, whole files do not make a validation text
COPY_SHARE = 0.1  # of the smaller file's fingerprints, also in the other: near copies
SAMPLE_BITS = 3  # one window hash in 2^3 is a fingerprint (Manber 1994), chosen by content

_TOGETHER = "files that share >= 10 % of their fingerprints (64-byte windows) together"
WHOLE_FILES_RULE = (
    f"whole files by SHA-256 of path and content, {_TOGETHER}; groups of more than 2.5 % of the bytes are "
    "not held out; validation is the first 5 % to 7.5 %"
)
FEW_FILES_RULE = f"whole files, smallest first, until validation has 5 % of the bytes, {_TOGETHER}"


@dataclass(frozen=True)
class TextFile:
    """One text: its path below the source (POSIX form) and its bytes, which are UTF-8 without NUL."""

    path: str
    content: bytes


@dataclass(frozen=True)
class FileSplit:
    """Which files are held out (indices into the list that was split), and the rule in words."""

    held_out: frozenset[int]
    rule: str


def split_files(files: Sequence[TextFile]) -> FileSplit | None:
    """A split by file with text on both sides, or None where whole files cannot give one.

    None: all files are copies of each other, or all but the largest group are under 1 % of the bytes.
    Otherwise validation has between 1 % and 52.5 % of the bytes, and [5 %, 7.5 %) where there are enough
    small groups.
    """
    groups = copy_groups([file.content for file in files])
    total = sum(len(file.content) for file in files)
    sizes = [sum(len(files[i].content) for i in group) for group in groups]
    keys = [min(sha256_hex(files[i].path.encode() + b"\0" + files[i].content) for i in group) for group in groups]
    by_hash = sorted(range(len(groups)), key=lambda g: keys[g])
    small = [g for g in by_hash if sizes[g] <= LARGEST_GROUP_SHARE * total]
    chosen, rule = _until_enough(small, sizes, total), WHOLE_FILES_RULE
    if _share(chosen, sizes, total) < VALIDATION_SHARE:
        by_size = sorted(range(len(groups)), key=lambda g: (sizes[g], keys[g]))
        chosen, rule = _until_enough(by_size[:-1], sizes, total), FEW_FILES_RULE
    if _share(chosen, sizes, total) < LEAST_SHARE:
        return None
    return FileSplit(frozenset(i for g in chosen for i in groups[g]), rule)


def copy_groups(texts: Sequence[bytes]) -> list[list[int]]:
    """Partition of the texts into groups of near copies, by index, ascending.

    Two texts are linked where they share COPY_SHARE of the smaller one's fingerprints; groups are the
    connected parts. Each fingerprint is compared with the first text that has it, not with all: time stays
    linear, and because links are followed on, a family of copies still meets in its first member.
    """
    prints = [_fingerprints(text) for text in texts]
    hashes = np.concatenate([np.empty(0, np.uint64), *prints])
    owner = np.repeat(np.arange(len(texts)), [len(p) for p in prints])
    order = np.argsort(hashes, kind="stable")  # stable: within a hash, owners ascend
    hashes, owner = hashes[order], owner[order]
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    first_owner = owner[is_first][np.cumsum(is_first) - 1]
    pairs = (first_owner * len(texts) + owner)[~is_first]
    parent = list(range(len(texts)))
    for pair, shared in zip(*np.unique(pairs, return_counts=True), strict=True):
        one, other = divmod(int(pair), len(texts))
        if shared >= COPY_SHARE * min(len(prints[one]), len(prints[other])):
            one, other = _root(parent, one), _root(parent, other)
            parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for i in range(len(texts)):
        groups.setdefault(_root(parent, i), []).append(i)
    return list(groups.values())


def _fingerprints(text: bytes) -> npt.NDArray[np.uint64]:
    """Distinct window hashes whose top bits are zero: the same windows in every text that has them."""
    hashes = window_hashes(np.frombuffer(text, np.uint8), WINDOW)
    return np.unique(hashes[hashes >> np.uint64(64 - SAMPLE_BITS) == 0])


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        i = parent[i]
    return i


def _until_enough(candidates: Sequence[int], sizes: Sequence[int], total: int) -> list[int]:
    chosen: list[int] = []
    for group in candidates:
        if _share(chosen, sizes, total) >= VALIDATION_SHARE:
            break
        chosen.append(group)
    return chosen


def _share(chosen: Sequence[int], sizes: Sequence[int], total: int) -> float:
    return sum(sizes[g] for g in chosen) / total
