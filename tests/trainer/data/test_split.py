"""Files are held out whole, near copies together, by content and not by the order of a folder."""

import numpy as np
import pytest

from karat.trainer.data.split import FEW_FILES_RULE, WHOLE_FILES_RULE, TextFile, copy_groups, split_files


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(32, 127, size, np.uint8).tobytes()


MANY = [TextFile(f"f{i}.txt", noise(i, 700 + 13 * i)) for i in range(100)]


def share(files: list[TextFile], held_out: frozenset[int]) -> float:
    return sum(len(files[i].content) for i in held_out) / sum(len(file.content) for file in files)


def test_many_small_files_give_five_to_seven_and_a_half_percent() -> None:
    split = split_files(MANY)
    assert split is not None and split.rule == WHOLE_FILES_RULE
    assert 0.05 <= share(MANY, split.held_out) < 0.075


def test_the_split_does_not_depend_on_the_order_of_the_files() -> None:
    forward, backward = split_files(MANY), split_files(MANY[::-1])
    assert forward is not None and backward is not None
    assert {MANY[i].path for i in forward.held_out} == {MANY[::-1][i].path for i in backward.held_out}


def test_another_content_gives_another_split() -> None:
    other = [TextFile(file.path, noise(1000 + i, len(file.content))) for i, file in enumerate(MANY)]
    one, two = split_files(MANY), split_files(other)
    assert one is not None and two is not None and one.held_out != two.held_out


def test_a_large_file_is_not_held_out() -> None:
    for seed in range(8):
        files = [*MANY, TextFile("large.txt", noise(900 + seed, 60_000))]
        split = split_files(files)
        assert split is not None and 100 not in split.held_out


def test_near_copies_form_one_group_and_others_do_not() -> None:
    body = noise(1, 4000)
    copy = body[:1500] + b"# changed here" + body[1500:]
    part = noise(2, 3000) + body[1000:2500]  # a third of it is a copy
    assert copy_groups([noise(3, 4000), body, noise(4, 4000), copy, part]) == [[0], [1, 3, 4], [2]]


def test_a_shared_header_does_not_make_a_copy() -> None:
    header = noise(1, 150)
    assert copy_groups([header + noise(i, 4000) for i in range(5, 9)]) == [[0], [1], [2], [3]]


def test_copies_are_never_on_two_sides() -> None:
    for i in range(40):
        twin = TextFile("twin.txt", MANY[i].content + b"!")
        split = split_files([*MANY, twin])
        assert split is not None
        assert (i in split.held_out) == (100 in split.held_out)


def test_few_files_are_held_out_smallest_first() -> None:
    files = [TextFile("a", noise(1, 1000)), TextFile("b", noise(2, 3000)), TextFile("c", noise(3, 2000))]
    split = split_files(files)
    assert split is not None
    assert (split.held_out, split.rule) == (frozenset({0}), FEW_FILES_RULE)


@pytest.mark.parametrize(
    "files",
    [
        [TextFile("a", noise(1, 1000)), TextFile("b", noise(1, 1000) + b"!")],  # copies of each other
        [TextFile("a", noise(1, 10)), TextFile("b", noise(2, 5000))],  # 0.2 % is no validation text
    ],
)
def test_none_where_whole_files_cannot_give_a_split(files: list[TextFile]) -> None:
    assert split_files(files) is None
