"""A configuration is read from four places, checked whole, resolved once, and written as TOML that reads back equal."""

from __future__ import annotations

import math
import string
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from karat.core.errors import ConfigError
from karat.core.formulas import schedule
from karat.core.policy import Policy
from karat.core.verdict import Status
from karat.invariants import inv09_qk_gain as inv09
from karat.trainer.config import RunConfig
from karat.trainer.config_file import parse_value, read_config, to_toml


def problem(*sets: str, file: Path | None = None, **direct: Any) -> str:
    """What the ConfigError of these settings says was seen."""
    with pytest.raises(ConfigError) as raised:
        read_config(file, sets, **direct)
    assert raised.value.exit_code == 2
    return raised.value.seen


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- where settings come from --------------------------------------------------------------------------------------


def test_later_sources_win(tmp_path: Path) -> None:
    file = written(
        tmp_path, "steps = 10\nseed = 10\nbatch_size = 10\npolicy = 'off'\n[optim]\nlr = 0.003\nfloor = 0.5\n"
    )
    config = read_config(
        file, ["seed=20", "batch_size=20", "optim.lr=0.005", "policy=warn"], batch_size=30, policy="strict"
    )
    assert (config.steps, config.seed, config.batch_size) == (10, 20, 30)
    assert (config.optim.lr, config.optim.floor) == (0.005, 0.5)
    assert config.policy is Policy.STRICT


def test_an_argument_that_is_none_is_not_given() -> None:
    assert read_config(None, ["seed=3"], seed=None) == read_config(None, ["seed=3"])
    assert read_config(None, [], **{"model.nca": False}).model.nca is False


def test_the_last_of_two_sets_wins_and_a_table_is_laid_over() -> None:
    config = read_config(None, ["seed=1", "seed=2", "optim.lr=0.005", "optim={beta1=0.8}"])
    assert (config.seed, config.optim.lr, config.optim.beta1) == (2, 0.005, 0.8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("256", 256), ("1e-3", 1e-3), ("true", True), ('"1"', "1"), ("strict", "strict"), ("./a b.txt", "./a b.txt"),
        ("2024-01-01", "2024-01-01"), ("[1]", "[1]"), ("", ""), ("1\nb = 2", "1\nb = 2"), ("1 # x", 1), ("{a=1}", {"a": 1}),
        ("1" * 5000, "1" * 5000), ("[" * 5000, "[" * 5000),
    ],
)  # fmt: skip
def test_a_value_is_toml_or_else_text(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "nearest"),
    [
        ("model.dmodel=3", "model.d_model"), ("lr=0.1", "optim.lr"), ("modle.d_model=3", "model"),
        ("batchsize=3", "batch_size"), ("n_layer=3", "model.n_layers"), ("checkpoint.keeplast=1", "checkpoint.keep_last"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(pair: str, nearest: str) -> None:
    assert f": unknown; did you mean {nearest}? (--set)" in problem(pair)


def test_an_unknown_key_like_no_other_suggests_nothing() -> None:
    assert problem("qqqq=1") == "qqqq: unknown (--set)"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("optim.lr=fast", "optim.lr: must be a valid number, got 'fast', a string"),
        ("optim.lr=nan", "optim.lr: must be a finite number, got nan, a float"),
        ("optim.lr=inf", "optim.lr: must be a finite number, got inf, a float"),
        ("optim.lr=-0.1", "optim.lr: must be greater than 0, got -0.1, a float"),
        ("optim.lr=0", "optim.lr: must be greater than 0, got 0, an integer"),
        ("optim.lr.x=1", "optim.lr: must be a valid number, got {'x': 1}, a table"),
        ("steps=-5", "steps: must be greater than or equal to 1, got -5, an integer"),
        ("steps=1e3", "steps: must be a valid integer, got 1000.0, a float"),
        ("steps=true", "steps: must be a valid integer, got True, a boolean"),
        ("batch_size=0", "batch_size: must be greater than or equal to 1, got 0, an integer"),
        ("model=5", "model: must be a table of keys such as model.vocab, got 5, an integer"),
        ("model.d_model=x", "model.d_model: must be a valid integer, got 'x', a string"),
        ("model.nca=1", "model.nca: must be a valid boolean, got 1, an integer"),
        ("policy=strong", "policy: must be one of off, observe, warn, strict, got 'strong', a string"),
        ("optim.schedule=step", "optim.schedule: must be 'wsd' or 'cosine', got 'step', a string"),
        ("optim.beta2=1", "optim.beta2: must be less than 1, got 1, an integer"),
        ("optim.decay_start=1.5", "optim.decay_start: must be less than or equal to 1, got 1.5, a float"),
        ("data=5", "data: must be a string, got 5, an integer"),
        ("out=", "out: must be text without NUL, not empty, got '', a string"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last: must be greater than or equal to 1, got 0, an integer"),
        ("lr_band.k=0", "lr_band.k: must be greater than or equal to 1, got 0, an integer"),
        ("lr_band.n=near", "lr_band.n: must be an integer from 0 to 64, or \"nearest\", got 'near', a string"),
        ("lr_band.n=65", "lr_band.n: must be an integer from 0 to 64, or \"nearest\", got 65, an integer"),
        ("lr_band.n=true", "lr_band.n: must be an integer from 0 to 64, or \"nearest\", got True, a boolean"),
        ("threads=100000", "threads: must be less than or equal to 1024, got 100000, an integer"),
        ("batch_size=1" + "0" * 30, f"batch_size: must be less than or equal to 2147483647, got 1{'0' * 30}, an integer"),
        ("model.d_model=1" + "0" * 30, f"model.d_model: must be less than or equal to 2147483647, got 1{'0' * 30}, an integer"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_with_what_is_required(pair: str, message: str) -> None:
    assert problem(pair) == f"{message} (--set)"


def test_settings_that_contradict_each_other_are_named() -> None:
    assert "optim.warmup must be at most steps, got 11 and 10" in problem("steps=10", "optim.warmup=11")
    assert "low must be below high, got low = 2.0 and high = 1.5" in problem("entropy_band={low=2.0, high=1.5}")
    assert "n_heads must divide d_model, got n_heads = 3" in problem("model.n_heads=3")


def test_all_problems_are_listed_with_their_places(tmp_path: Path) -> None:
    file = written(tmp_path, "batch_size = 'many'\n")
    lines = problem("steps=-4", "foo", "=3", "a..b=1", "optim.lr=fast", file=file, policy="x").splitlines()
    assert lines[0] == "7 settings cannot be used:"
    assert len(lines) == 8
    text = "\n".join(lines)
    assert f"batch_size: must be a valid integer, got 'many', a string (in {file})" in text
    assert "steps: must be greater than or equal to 1, got -4, an integer (--set)" in text
    assert "policy: must be one of off, observe, warn, strict, got 'x', a string (an argument)" in text
    assert "--set foo: must be key=value, such as model.d_model=256; no '=' was seen" in text
    assert "--set =3: must be key=value" in text and "--set a..b=1: must be key=value" in text


def test_a_rate_outside_the_golden_band_is_not_an_error_here() -> None:
    assert read_config(None, ["optim.lr=0.5"]).optim.lr == 0.5


def test_an_unsafe_threshold_is_not_an_error_here() -> None:
    assert read_config(None, ["asha.threshold=2.65"]).certificate.threshold == Fraction(53, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps = 1\nlr 0.004\n", "at line 2, column 4"),
        ("steps = 1\nsteps = 2\n", "at line 2"),
        (b"steps = 1\ndata = '\xff'\n", "is not UTF-8 text (at line 2, byte 0xff)"),
        ("steps = " + "1" * 5000, "is not TOML"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = written(tmp_path, content)
    assert message in problem(file=file) and str(file) in problem(file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert (
        problem(file=tmp_path / "no.toml")
        == f"the configuration {tmp_path / 'no.toml'} cannot be read: No such file or directory"
    )
    assert "Is a directory" in problem(file=tmp_path)


def test_the_record_is_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        RunConfig().steps = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        RunConfig(steps="5")  # type: ignore[arg-type]


# -- what it resolves to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "warmup", "stable_end", "r0", "every", "rungs"),
    [(1, 1, 1, 1, 1, ()), (10, 1, 6, 4, 2, (4,)), (300, 15, 180, 100, 75, (100,)), (301, 15, 180, 101, 75, (101,))],
)  # fmt: skip
def test_what_is_left_out_follows_from_steps(
    steps: int, warmup: int, stable_end: int, r0: int, every: int, rungs: tuple[int, ...]
) -> None:
    config = RunConfig(steps=steps)
    assert (config.optim.warmup, config.asha.r0, config.checkpoint.every) == (warmup, r0, every)
    assert (config.warmup, config.stable_end, config.rungs) == (warmup, stable_end, rungs)


def test_what_is_given_is_kept() -> None:
    config = read_config(None, ["optim.warmup=0", "asha.r0=7", "checkpoint.every=9", "eval.every=4"])
    assert (config.warmup, config.asha.r0, config.checkpoint.every, config.eval.every) == (0, 7, 9, 4)


def test_declared_decimals_are_exact() -> None:
    config = read_config(
        None, ["asha={threshold=3.3,target=1.2,gap=2.1}", "entropy_band={low=1.6,high=2.1}", "lr_band.n=9"]
    )
    certificate = config.certificate
    assert certificate.target + certificate.gap == certificate.threshold == Fraction(33, 10)
    assert (config.entropy.low, config.entropy.high) == (Fraction(8, 5), Fraction(21, 10))
    assert (config.band.n, config.band.k) == (9, 1)


def test_decay_starts_at_the_exact_product() -> None:
    assert RunConfig(steps=100, optim={"decay_start": 0.29}).stable_end == 29  # 100 * 0.29 is 28.999999999999996
    assert RunConfig(steps=100, optim={"decay_start": 0.01, "warmup": 50}).stable_end == 50


@given(
    st.integers(1, 400),
    st.sampled_from(["wsd", "cosine"]),
    st.floats(1e-6, 1),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.data(),
)
def test_the_schedule_is_the_proved_formula(
    steps: int, kind: str, lr: float, floor: float, decay_start: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.one_of(st.none(), st.integers(0, steps)))
    optim = {"schedule": kind, "lr": lr, "floor": floor, "decay_start": decay_start, "warmup": warmup}
    config = RunConfig(steps=steps, optim=optim)
    rates = [config.schedule(step) for step in range(steps + 2)]
    for step, rate in enumerate(rates):
        if kind == "wsd":
            assert rate == schedule.wsd(step, config.warmup, config.stable_end, steps, lr, lr * floor)
        else:
            assert rate == schedule.cosine(step, config.warmup, steps, lr, lr * floor)
    assert all(0 <= rate <= lr for rate in rates) and rates[steps] == lr * floor
    plateau = [step for step in range(steps + 2) if config.plateau(step)]
    assert plateau and plateau[-1] < steps
    assert plateau == list(range(plateau[0], plateau[-1] + 1))
    assert all(math.isclose(rates[step], lr, rel_tol=4e-16) for step in plateau)


def test_the_plateau_is_where_the_schedule_is_flat() -> None:
    wsd, cosine = RunConfig(steps=100), RunConfig(steps=100, optim={"schedule": "cosine"})
    assert [step for step in range(100) if wsd.plateau(step)] == list(range(5, 60))
    assert [step for step in range(100) if cosine.plateau(step)] == [4]
    cold = RunConfig(steps=100, optim={"schedule": "cosine", "warmup": 0})
    assert [step for step in range(-1, 100) if cold.plateau(step)] == [0]
    assert cold.schedule(0) == cold.optim.lr


def test_attention_may_be_off_by_the_rounding_of_bfloat16_where_the_run_is_in_bfloat16_alone() -> None:
    """2^-9: half the spacing of bfloat16 below 1."""
    seen = {"gain": RunConfig().model.qk_gain, "deviation": 2**-9, "spread": 1.0}
    assert inv09.INVARIANT.judge(seen, RunConfig(precision="bfloat16").gain).status is Status.HOLDS
    assert inv09.INVARIANT.judge(seen, RunConfig().gain).violated
    assert inv09.INVARIANT.judge(seen | {"deviation": 0.02}, RunConfig(precision="bfloat16").gain).violated


# -- what decides a run's numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        "steps=301",
        "seed=1",
        "data=x",
        "validation=x",
        "batch_size=3",
        "model.streams=1",
        "optim.lr=0.005",
        "optim.clip=2",
    ],
)
def test_the_digest_changes_with_what_decides_the_numbers(pair: str) -> None:
    assert read_config(None, [pair]).digest != RunConfig().digest


@pytest.mark.parametrize(
    "pair", ["out=x", "policy=strict", "threads=1", "eval.every=3", "checkpoint.every=3", "asha.gap=1", "lr_band.k=2"]
)
def test_the_digest_does_not_change_with_what_only_watches(pair: str) -> None:
    assert read_config(None, [pair]).digest == RunConfig().digest


def test_the_trajectory_names_each_setting() -> None:
    trajectory = RunConfig().trajectory
    assert trajectory["optim.warmup"] == 60 and trajectory["model.d_model"] == 256 and trajectory["seed"] == 42
    assert "out" not in trajectory


# -- TOML ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
tables = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 2**40), "seed": st.integers(0, 2**63 - 1), "out": texts, "data": texts,
        "validation": texts, "data_dir": texts, "policy": st.sampled_from(list(Policy)), "threads": st.integers(1, 64),
        "batch_size": st.integers(1, 2**31 - 1),
        "model": st.fixed_dictionaries({}, optional={"context": st.integers(1, 9), "gf16": st.booleans(), "qk_gain": positive}),
        "optim": st.fixed_dictionaries({"lr": positive, "beta1": st.floats(0, 1, exclude_max=True)},
                                       optional={"schedule": st.sampled_from(["wsd", "cosine"])}),
        "asha": st.fixed_dictionaries({"gap": positive}, optional={"r0": st.integers(1, 99)}),
        "entropy_band": st.fixed_dictionaries({"low": st.floats(0, 2), "high": st.floats(2.1, 1e300)}),
        "eval": st.fixed_dictionaries({}, optional={"every": st.integers(1, 99), "bytes": st.integers(2, 99)}),
    },
)  # fmt: skip


@settings(max_examples=200)
@given(tables)
def test_toml_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]) -> None:
    config = read_config(None, [], **table)
    file = written(tmp_path_factory.getbasetemp(), to_toml(config))
    assert read_config(file, []) == config
    assert to_toml(read_config(file, [])) == to_toml(config)


def test_toml_holds_every_key_that_is_set() -> None:
    text = to_toml(RunConfig())
    assert text.startswith('steps = 1200\nseed = 42\n# out is not set\ndata = "stdlib"\n')
    assert '\n[optim]\nname = "adamw"\nlr = 0.004\n' in text and '\nschedule = "wsd"\nwarmup = 60\n' in text
    assert "\n# validation is not set\n" in text  # a comment, since TOML has no null
    assert '\nout = "runs/karat"\n' in to_toml(RunConfig(out=Path("runs/karat")))


@given(st.text(string.printable))
def test_any_set_pair_is_taken_or_is_a_config_error(pair: str) -> None:
    try:
        read_config(None, [pair, f"optim.{pair}", f"out={pair}"])
    except ConfigError as error:
        assert error.seen and error.next_step
