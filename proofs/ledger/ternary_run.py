"""The ternary run: sizes, rates and losses of its report, recomputed from the configuration that it gives.

What the report does not give comes from the public source of the run: a feed-forward width of 512, tied embeddings, no
biases, nine scalars per sublayer for the residual mixing, float32 weights, and the shape of the synthetic data.
"""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

from karat.core.bounds import Log
from karat.proofs.ledger.decimals import agrees, number, percent, read, show
from karat.proofs.ledger.record import COUNT, FORMULA, REPLAY, Checker, Document, Finding, decided, left_open
from karat.proofs.ledger.ternary_run_schedule import SCHEDULE

DIM, LAYERS, HEADS, VOCAB, CONTEXT, FFN = 256, 4, 4, 4096, 256, 512
STEPS, BATCH, MINUTES, SAMPLES = 2000, 8, Fraction("155.6"), 16_000
LOSSES = {50: "173.13", 100: "168.54", 250: "57.79", 500: "14.00", 1000: "5.94", 1500: "4.32", 1950: "4.09",
          2000: "3.75"}  # fmt: skip
"""Step -> loss, as the report prints it."""
CHECKPOINTS = (500, 1000, 1500, 2000)
INITIAL, FINAL = Fraction(LOSSES[50]), Fraction(LOSSES[2000])
UNIFORM = Log(Fraction(VOCAB))
"""The loss of guessing uniformly over the vocabulary, in nats."""


def tensors() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight."""
    shapes: dict[str, tuple[int, ...]] = {"tok_embed.weight": (VOCAB, DIM), "norm_final.weight": (DIM,)}
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        for sublayer in ("mhc_attn", "mhc_ffn"):
            shapes[f"{block}.{sublayer}.alpha_logit"] = (1,)
            for name in ("pre_logits", "pre_bias", "post_logits", "post_bias"):
                shapes[f"{block}.{sublayer}.{name}"] = (2,)
        for name in ("norm_attn", "norm_ffn"):
            shapes[f"{block}.{name}.weight"] = (DIM,)
        for name in ("wq", "wk", "wv", "wo"):
            shapes[f"{block}.attn.{name}.weight"] = (DIM, DIM)
        for name, shape in (("w_gate", (FFN, DIM)), ("w_up", (FFN, DIM)), ("w_down", (DIM, FFN))):
            shapes[f"{block}.ffn.{name}.weight"] = shape
    return shapes


def parameters() -> int:
    """How many weights the configuration has."""
    return sum(math.prod(shape) for shape in tensors().values())


def file_bytes() -> int:
    """The size of a safetensors file of these weights: eight bytes, a JSON header padded to eight, four bytes a weight."""
    header, place = {}, 0
    for name, shape in sorted(tensors().items()):
        end = place + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + place


def meta_bytes(loss: float) -> int:
    """The size of meta.json, from its 23 settings, the step and a loss."""
    config = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": HEADS, "ffn_mult": 2.0, "vocab_size": VOCAB,
              "max_seq_len": CONTEXT, "group_size": 128, "mhc_n_streams": 2, "weight_tied": True, "rope_theta": 10000.0,
              "lr": 0.019999999552965164, "mhc_lr": 0.0001, "weight_decay": 0.0, "batch_size": BATCH, "grad_accum_steps": 1,
              "warmup_steps": 500, "total_steps": 1000, "decay_start_frac": 0.8, "grad_clip": 1.0, "ns_steps": 3,
              "muon_momentum": 0.95, "lion_betas": [0.9, 0.99]}  # fmt: skip
    return len(json.dumps({"config": config, "step": STEPS, "loss": loss}, indent=2))


def gguf_bytes() -> int:
    """The exported model: float32 embedding and norms, two bits a ternary weight, a float32 scale per group of 128."""
    ternary = sum(math.prod(s) for n, s in tensors().items() if ".attn.w" in n or ".ffn.w" in n)
    norms = sum(math.prod(s) for n, s in tensors().items() if "norm" in n)
    return 4 * VOCAB * DIM + ternary // 4 + 4 * (ternary // 128) + 4 * norms


def floor() -> float:
    """The least mean loss on the synthetic data, in nats: a third is random, and the first target tells the kind."""
    random = sum(i % 3 == 2 for i in range(SAMPLES))
    return random / SAMPLES * math.log(VOCAB) + math.log(3) / CONTEXT


def _reduction(start: float | Fraction, end: float | Fraction) -> float:
    return float(1 - end / start)


def _demonstrates_learning(stated: str) -> Finding:
    """A reduction shows something learned when a uniform guess, which has learned nothing, does not reach it."""
    guess = _reduction(float(INITIAL), math.log(VOCAB))
    note = (
        f"measured from ln 4096 = {show(UNIFORM)} nats, where an untrained model stands, the reduction is "
        f"{percent(_reduction(math.log(VOCAB), float(FINAL)))}"
    )
    return Finding(read(stated)[0] > guess, f"a uniform guess alone reaches {percent(guess)} of 173.13", note)


def _logged_at(stated: int) -> Finding:
    step = next(step for step, loss in LOSSES.items() if Fraction(loss) == INITIAL)
    ratio = show(float(INITIAL) / math.log(VOCAB), 3)
    return Finding(step == stated, f"the row of step {step}", f"{ratio} times ln 4096, the loss of a uniform guess")


def _epochs(stated: int) -> Finding:
    epochs = Fraction(STEPS * BATCH, SAMPLES)
    return Finding(epochs > stated, f"{show(epochs)} pass over the data")


def _never_rises(stated: tuple[str, ...]) -> Finding:
    losses = [Fraction(loss) for loss in stated]
    rises = sum(b > a for a, b in itertools.pairwise(losses))
    return Finding(rises == 0, f"{rises} rises in {len(losses)} logged rows", "of the training loss; no other is given")


def _best(stated: int) -> Finding:
    best = min(CHECKPOINTS, key=lambda step: Fraction(LOSSES[step]))
    return Finding(best == stated, f"step {best}, loss {LOSSES[best]}", "by training loss: no validation is reported")


def _slower(stated: tuple[int, int]) -> Finding:
    """Whether the factors that 30 to 60 minutes on a GPU give meet the stated ones."""
    least, most = MINUTES / 60, MINUTES / 30
    note = f"{stated[0]}-{stated[1]} times would be {show(MINUTES / stated[1], 3)} to {show(MINUTES / stated[0], 3)} minutes"
    return Finding(
        stated[0] <= most and least <= stated[1], f"{show(least, 3)} to {show(most, 3)} times by those minutes", note
    )


def _meta(stated: int) -> Finding:
    stored = meta_bytes(0.0)
    return Finding(
        stored == stated, f"{stored} bytes", f"with a stored loss of 0.0; with 3.75 it is {meta_bytes(3.75)}"
    )


def _file(scale: int, unit: str) -> Checker:
    def check(stated: str) -> Finding:
        size = Fraction(file_bytes(), scale)
        other = Fraction(file_bytes(), 2**20)
        return Finding(
            agrees(stated, size), f"{float(size):.2f} {unit}", f"{float(other):.2f} MiB: one size in two units"
        )

    return check


def _excess() -> str:
    final = float(FINAL)
    share = (math.log(VOCAB) - final) / (math.log(VOCAB) - floor())
    return (
        f"floor of the data {show(floor(), 4)} nats, final loss {show(final - floor(), 3)} above it; "
        f"{percent(share)} of the way from ln 4096"
    )


def _scaling() -> str:
    hours = [show(Fraction(h) * 8, 3) for h in (2, 3)]
    return f"8 times the parameters on as many tokens: {hours[0]} to {hours[1]} hours, not 10 to 15"


SUMMARY, METRICS, SPEED = "training summary", "training metrics", "performance characteristics"
ENTRIES = (
    decided("C-000.01", "The model has 3.7M parameters (256 dim, 4 layers, 4 heads, vocabulary 4,096)", SUMMARY, FORMULA,
            number(parameters, "with the feed-forward width 512 of the public source"), "3.7M", "3.9M"),
    decided("C-000.02", "2,000 steps of batch 8 use the 16,000 samples of the data set", METRICS, COUNT,
            number(lambda: STEPS * BATCH), "16,000", "32,000"),
    decided("C-000.03", "The run tested multi-epoch training: more than one pass over 16,000 samples",
            "infrastructure validation, components tested", COUNT, _epochs, 1, 0),
    decided("C-000.04", "The loss fell by 97.8%, from 173.13 to 3.75", METRICS, FORMULA,
            number(lambda: _reduction(INITIAL, FINAL)), "97.8%", "98.7%"),
    decided("C-000.05", "97.8% loss reduction demonstrates learning", "key achievements, 3", FORMULA,
            _demonstrates_learning, "97.8%", "95.0%"),
    decided("C-000.06", "The initial loss (that of the first step) is 173.13", METRICS, REPLAY, _logged_at, 1, 50),
    decided("C-000.07", "The average throughput is ~440 tokens per second", METRICS, FORMULA,
            number(lambda: STEPS * BATCH * CONTEXT / (60 * MINUTES)), "~440", "~480"),
    decided("C-000.08", "155.6 minutes are 2.6 hours", "head of the report", FORMULA, number(lambda: MINUTES / 60, "", "hours"),
            "2.6", "2.7"),
    decided("C-000.09", "A step takes ~4.5 seconds", SPEED, FORMULA, number(lambda: 60 * MINUTES / STEPS, "", "s"),
            "~4.5", "~4.7"),
    decided("C-000.10", "50 steps take ~230 seconds", SPEED, FORMULA, number(lambda: 50 * 60 * MINUTES / STEPS, "", "s"),
            "~230", "~250"),
    decided("C-000.11", "~70 cores for 155.6 minutes are ~11,000 CPU-minutes", "resource usage", FORMULA,
            number(lambda: 70 * MINUTES, "", "CPU-minutes"), "~11,000", "~13,000"),
    decided("C-000.12", "Each step checkpoint takes 14.02 MB", "checkpoint details", FORMULA, _file(10**6, "MB"),
            "14.02", "14.70"),
    decided("C-000.13", "The final checkpoint takes 14.70 MB", "checkpoint details", FORMULA, _file(10**6, "MB"),
            "14.70", "14.02"),
    decided("C-000.14", "meta.json takes 616 bytes", "checkpoint details", FORMULA, _meta, 616, 617),
    decided("C-000.15", "All checkpoints together take ~74 MB", "resource usage", FORMULA,
            number(lambda: Fraction(5 * (file_bytes() + meta_bytes(0.0)), 10**6), "five files of one size; the printed sizes "
                   "add up to 70.78", "MB"), "~74", "~71"),
    *SCHEDULE,
    decided("C-000.23", "Training was stable with no divergence", "key achievements, 4", REPLAY, _never_rises,
            tuple(LOSSES.values()), ("173.13", "168.54", "170.00")),
    decided("C-000.24", "The best checkpoint is that of step 2000", "checkpoint details", REPLAY, _best, 2000, 1500),
    decided("C-000.25", "CPU training is 50-100x slower than GPU, where the same model takes ~30-60 minutes",
            "bottlenecks; GPU training projection", FORMULA, _slower, (50, 100), (2, 5)),
    decided("C-000.26", "The exported ternary model takes 4.71 MB", "public source of the run, inference demo", FORMULA,
            number(lambda: Fraction(gguf_bytes(), 10**6), "4.71 MiB; the float32 embedding is most of it", "MB"),
            "4.71", "4.94"),
    decided("C-000.27", "Export shrinks the checkpoint by 68%", "public source of the run, inference demo", FORMULA,
            number(lambda: 1 - Fraction(gguf_bytes(), file_bytes()), "68% is 1 - 4.71/14.70: MiB over MB"), "68%", "66%"),
    left_open("C-000.28", "Convergence is excellent", "loss progression", "no measure of excellent is given", _excess),
    left_open("C-000.29", "A 125M model takes ~2-3 hours on GPU, a 1B model ~10-15 hours", "GPU training projection",
              "neither the GPU nor the number of tokens is given", _scaling),
    left_open("C-000.30", "The first step takes ~2-3 minutes, for graph compilation", "bottlenecks", "not logged step by step"),
    left_open("C-000.31", "Peak use is ~70 cores and ~1.5 GB of memory", "resource usage", "a measurement that is not kept"),
    left_open("C-000.32", "All 349 tests pass and clippy gives no warning", "code quality", "that revision cannot be run here"),
    left_open("C-000.33", "Expected pass@1 on HumanEval is 0-5%", "compare with baseline", "no evaluation is reported"),
    left_open("C-000.34", "This is the first Rust-native ternary language model training", "title; key achievements, 1",
              "a claim of priority: no computation decides it"),
    left_open("C-000.35", "2,000 steps despite --total-steps 1000 is expected behavior", "training configuration used",
              "what was expected is not on record; C-000.18 and C-000.21 say what it did to the rate"),
)  # fmt: skip

DOCUMENT = Document(
    "C-000",
    "The ternary run: report of a training that is complete",
    "A report of 2,000 steps of a 3.7M-parameter ternary transformer on CPU. Losses are in nats per token.",
    ENTRIES,
)
