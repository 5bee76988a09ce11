"""One frozen record says what a run is: every key checked, resolved when it is made, unknown keys refused.

Keys that are left out are filled in from others (`optim.warmup` from `steps`, …) when the record is made, so what is
printed, saved and digested is what ran. Steps count from 0; rates are per step; losses are in bits per byte;
entropies in nats. Files and command lines are read by `config_file.py`.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from karat.core.errors import ConfigError
from karat.core.formulas import anchors, ema, halving, schedule
from karat.core.policy import Policy
from karat.core.provenance import digest
from karat.invariants import (
    inv01_descent,
    inv02_asha_threshold,
    inv04_nca_entropy_band,
    inv05_lucas_closure,
    inv06_ema_decay,
    inv08_lr_band,
    inv09_qk_gain,
    inv10_asha_rungs,
)
from karat.invariants.inv02_asha_threshold import as_written
from karat.trainer.config_sections import (
    AshaConfig,
    CheckpointConfig,
    DescentConfig,
    EmaConfig,
    EntropyBandConfig,
    EvalConfig,
    GivenPath,
    LrBandConfig,
    OptimConfig,
    QkConfig,
    Section,
    as_policy,
    as_text,
)
from karat.trainer.data.corpus import TokenKind
from karat.trainer.data.tokenizer import FEWEST, MOST
from karat.trainer.models.config import ModelConfig
from karat.trainer.objectives.jepa import JepaConfig

TRAJECTORY = (
    "steps",
    "seed",
    "data",
    "tokens",
    "validation",
    "batch_size",
    "overfit_one_batch",
    "precision",
    "model",
    "optim",
    "ema",
    "jepa",
)
"""The keys that decide the numbers of a run; the others only place, watch or stop it."""

BFLOAT16_TOLERANCE = 0.01
"""How far attention in bfloat16 may be from its definition in float32, see GoldenGain: measured at 5e-4; a bfloat16 is
rounded by at most 2^-9 = 0.002."""


class RunConfig(Section):
    """Everything that a run is made from. Raises pydantic's ValidationError; `read_config` turns it into ConfigError."""

    steps: int = Field(default=1200, ge=1, le=2**40)
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Below 2^63, the largest integer that TOML promises."""
    out: GivenPath | None = None
    """None: the next free folder in runs/."""
    data: Annotated[str, BeforeValidator(as_text)] = "stdlib"
    """A named corpus, or the path of a text file or folder."""
    tokens: TokenKind = "bytes"
    """bpe: byte pairs, `model.vocab` of them with the bytes, trained on the training side alone."""
    validation: GivenPath | None = None
    data_dir: GivenPath | None = None
    policy: Annotated[Policy, BeforeValidator(as_policy)] = Policy.WARN
    batch_size: int = Field(default=8, ge=1, le=2**31 - 1)
    overfit_one_batch: bool = False
    """Every step takes the batch of step 0; the run holds when the loss on it comes near its least. See overfit.py."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """None: all cores. At most what a system lets a process start: one that it does not ends the process at once."""
    preset: str | None = None
    """The preset that the other keys were laid over; see presets.py."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the forward pass under autocast; weights, gradients and optimizer stay float32."""
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    jepa: JepaConfig = JepaConfig()
    asha: AshaConfig = AshaConfig()
    descent: DescentConfig = DescentConfig()
    lr_band: LrBandConfig = LrBandConfig()
    qk: QkConfig = QkConfig()
    entropy_band: EntropyBandConfig = EntropyBandConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        """Fills in what depends on `steps`. Only here, before anyone has seen the record, is it written to."""
        if self.optim.warmup is not None and self.optim.warmup > self.steps:
            raise ValueError(f"optim.warmup must be at most steps, got {self.optim.warmup} and {self.steps}")
        if self.tokens == "bpe" and not FEWEST <= self.model.vocab <= MOST:
            seen = f"got {self.model.vocab}; model.vocab=4096 is a common one"
            raise ValueError(f"model.vocab must be {FEWEST} to {MOST} with tokens=bpe, {seen}")
        self._fill("optim", "warmup", max(1, self.steps // 20))
        self._fill("asha", "r0", -(-self.steps // 3))
        self._fill("descent", "window", max(20, self.steps // 20))
        self._fill("checkpoint", "every", max(1, self.steps // 4))
        if self.lr_band.n == "nearest":
            self._fill("lr_band", "n", anchors.nearest_anchor(self.optim.lr), unset="nearest")
        return self

    def _fill(self, section: str, key: str, value: int, unset: str | None = None) -> None:
        record: BaseModel = getattr(self, section)
        if getattr(record, key) == unset:
            object.__setattr__(self, section, record.model_copy(update={key: value}))

    @property
    def certificate(self) -> inv02_asha_threshold.Certificate:
        """The declared threshold, target and gap as exact decimals, for INV-2."""
        asha = self.asha
        return inv02_asha_threshold.Certificate(*map(as_written, (asha.threshold, asha.target, asha.gap)))

    @property
    def band(self) -> inv08_lr_band.Band:
        """The exact golden band of `optim.lr`, for INV-8."""
        return _band(_resolved(self.lr_band.n, "lr_band.n"), self.lr_band.k)

    def band_of(self, peak: float) -> inv08_lr_band.Band:
        """The band of a group with this peak rate: the declared one for `optim.lr`, else that of its nearest anchor."""
        if peak == self.optim.lr:
            return self.band
        return _band(_nearest(peak), self.lr_band.k)

    @property
    def peaks(self) -> tuple[float, ...]:
        """The peak rates of the optimizer's groups: `optim.lr` first, then Muon's where there is one."""
        own = (self.optim.lr,)
        return (*own, self.optim.matrix_lr) if self.optim.name.startswith("muon") else own

    @property
    def closure(self) -> inv05_lucas_closure.Closure | None:
        """The even golden power that the gain is declared and configured to be, for INV-5; None when it is none."""
        m, odd = divmod(self.qk.power, 2)
        if odd or not inv05_lucas_closure.closes(self.model.qk_gain, m):
            return None
        return inv05_lucas_closure.Closure(m)

    @property
    def gain(self) -> inv09_qk_gain.GoldenGain:
        """The declared golden gain of the attention scores, for INV-9; looser where attention runs in bfloat16."""
        if self.precision == "bfloat16":
            return inv09_qk_gain.GoldenGain(self.qk.power, tolerance=BFLOAT16_TOLERANCE)
        return inv09_qk_gain.GoldenGain(self.qk.power)

    @property
    def entropy(self) -> inv04_nca_entropy_band.EntropyBand:
        """The exact band of the grid's entropy in nats, for INV-4."""
        band = self.entropy_band
        return inv04_nca_entropy_band.EntropyBand(as_written(band.low), as_written(band.high))

    @property
    def windows(self) -> inv01_descent.Windows | None:
        """The windows that INV-1 compares; None for a run shorter than three of them, which has too few comparisons."""
        window = _resolved(self.descent.window, "descent.window")
        if self.steps < 3 * window:
            return None
        return inv01_descent.Windows(window, self.descent.z, self.descent.tolerance)

    @property
    def averaging(self) -> inv06_ema_decay.Averaging:
        """The declared decay of the averaged weights as exact decimals, for INV-6."""
        return self.ema.declared

    def decay(self, step: int) -> float:
        """The decay of the average's update after optimizer step `step` (from 0), by the proved formula."""
        return float(ema.decay_at(step, self.steps, *self.averaging.ends))

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps after which a trial is judged: r0·3^k, those before the end."""
        return halving.rung_steps(_resolved(self.asha.r0, "asha.r0"), self.steps)

    @property
    def declared_rungs(self) -> inv10_asha_rungs.Rungs:
        """The first rung and the end of the run, for INV-10, which makes the rungs of them itself."""
        return inv10_asha_rungs.Rungs(_resolved(self.asha.r0, "asha.r0"), self.steps)

    @property
    def warmup(self) -> int:
        """Steps of the ramp, resolved."""
        return _resolved(self.optim.warmup, "optim.warmup")

    @property
    def stable_end(self) -> int:
        """The step at which wsd starts to decay: floor(decay_start · steps), exactly, but not before warmup ends."""
        return max(self.warmup, math.floor(as_written(self.optim.decay_start) * Fraction(self.steps)))

    def schedule(self, step: int, peak: float | None = None) -> float:
        """The learning rate of optimizer step `step` (from 0), by the proved formula; at most peak, which is `optim.lr`
        where it is not given."""
        peak = self.optim.lr if peak is None else peak
        floor = peak * self.optim.floor
        if self.optim.schedule == "wsd":
            return float(schedule.wsd(step, self.warmup, self.stable_end, self.steps, peak, floor))
        return float(schedule.cosine(step, self.warmup, self.steps, peak, floor))

    def plateau(self, step: int) -> bool:
        """Whether `step` is on the plateau, where INV-8 holds the rate to both ends of its band.

        wsd: warmup <= step < stable_end. Where that is empty, and for cosine, which is at its peak for one step: the
        step that ends the ramp, max(0, warmup - 1). So every schedule has a plateau step before `steps`.
        """
        if self.optim.schedule == "wsd" and self.warmup < self.stable_end:
            return self.warmup <= step < self.stable_end
        return step == max(0, self.warmup - 1)

    @property
    def trajectory(self) -> dict[str, Any]:
        """Dotted name -> value of each setting that decides the numbers of the run; a resumed run has equal ones."""
        return dotted(self.model_dump(mode="json", include=set(TRAJECTORY)))

    @property
    def digest(self) -> str:
        """SHA-256 of `trajectory`: equal for two configurations that train the same run."""
        return digest(self.trajectory)


_nearest = functools.cache(anchors.nearest_anchor)
_band = functools.cache(inv08_lr_band.Band)


def dotted(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names: {"model": {"nca": x}} -> {"model.nca": x}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _resolved(value: int | str | None, name: str) -> int:
    if not isinstance(value, int):  # only where a record was made without its validator (model_construct, model_copy)
        raise ConfigError(f"{name} is not resolved", required="a RunConfig made by read_config or RunConfig(...)")
    return value
