"""What T-JEPA adds to a step, by formula: predictor and mask vector, the target's copy and pass, the masked text's pass.

Symbols beside those of formulas.py: M masked and U visible tokens of a row, W width, J blocks and A heads of the predictor.
The encoder runs three times: on the masked text with gradient, on the whole text as the target without, and on the whole
text for the next token. The head runs once, in the last. The caller gives the encoder's sums, F_encoder, E_encoder and
N_model: operations, saved bytes and parameters of one pass.
"""

from __future__ import annotations

from collections import defaultdict

from karat.trainer.budget.terms import Symbols, Term, term
from karat.trainer.config import RunConfig

MATRICES = "J * (10 * W**2 + 2 * W * d) + W * d"
"""Of a block: queries, output, keys and values of the encoder's width, and a feed-forward of 4 W; then the last map."""


def symbols(config: RunConfig) -> Symbols:
    """What the formulas mention; none without T-JEPA. ConfigError where no mask fits the context."""
    jepa, length = config.jepa, config.model.context
    if not jepa.enabled:
        return {}
    masked = jepa.spans.plan(length).masked
    return {"M": masked, "U": length - masked, "W": jepa.width, "J": jepa.layers, "A": jepa.heads}


def parameters(at: Symbols) -> list[Term]:
    """What is trained beside the model: the target is not."""
    return [
        term("T-JEPA: mask vector", "d", at),
        term("T-JEPA: predictor's matrices", MATRICES, at),
        term("T-JEPA: predictor's query and norms", "W * (2 * J + 2)", at),
    ]


def trained_by_muon(at: Symbols) -> list[Term]:
    """The predictor's matrices; its query and the mask vector are vectors."""
    return [term("T-JEPA: predictor's matrices", MATRICES, at)]


def lasting(config: RunConfig, at: Symbols) -> list[Term]:
    """The target: weights that follow the model's, without gradient or optimizer, and the scratch of their update."""
    lines = [
        term("T-JEPA: target's weights", "4 * N_model", at),
        term("T-JEPA: target's scratch, two of each weight", "2 * 4 * N_model", at),
    ]
    if config.model.gf16:
        lines.append(term("T-JEPA: target's rounded weights, and what of", "2 * 4 * L * m * d * F", at))
    if config.model.ternary:
        lines.append(
            term("T-JEPA: target's trits and scales, as last made", "L * (4 * d**2 + m * d * F) * (G + 4) // G", at)
        )
    return lines


def forward_flops(config: RunConfig, at: Symbols) -> list[Term]:
    """Two more passes of the encoder, the predictor, and the covariances of features."""
    return [
        term("T-JEPA: encoder on the masked text", "F_encoder", at),
        term("T-JEPA: target on the whole text", "F_encoder", at),
        term("T-JEPA: predictor's matrices", f"2 * B * ({_products()})", at),
        term("T-JEPA: predictor's scores and mixing", "4 * J * B * M * U * W", at),
        term("T-JEPA: covariances of features", f"{2 if _penalised(config) else 1} * 2 * B * U * d**2 + 2 * B * M * d**2", at),
    ]  # fmt: skip


def backward_flops(config: RunConfig, at: Symbols) -> list[Term]:
    """As everywhere two products for each, and scores made anew; the target has no backward pass, nor has what is watched."""
    lines = [
        term("T-JEPA: encoder on the masked text", "F_encoder_back", at),
        term("T-JEPA: predictor's matrices", f"2 * 2 * B * ({_products()})", at),
        term("T-JEPA: predictor's scores anew, 4 gradients", "10 * J * B * M * U * W", at),
    ]
    return [*lines, term("T-JEPA: penalty", "2 * 2 * B * U * d**2", at)] if _penalised(config) else lines


def _products() -> str:
    """Of one row: a matrix's elements times the places that it is applied to; keys and values are of visible places."""
    return "M * (J * 10 * W**2 + W * d) + U * J * 2 * W * d"


def update_flops(at: Symbols) -> list[Term]:
    """Muon's iterations on the predictor's matrices: 6 W³ for a square one, 18 W³ for one of W by 4 W."""
    inner = "4 * min({0})**2 * max({0}) + 2 * min({0})**3"
    blocks = f"J * (2 * 6 * W**3 + 2 * 18 * W**3 + {inner.format('2 * W, d')})"
    return [term("Muon: T-JEPA's predictor", f"ns * ({blocks} + {inner.format('W, d')})", at)]


def muon_stacks(at: Symbols, element: str, gram: str) -> list[str]:
    """The bytes of each stack with matrices of the predictor while it is orthogonalised: matrices of one shape are one stack,
    the model's among them."""
    ours = (("2 * J", "W", "W"), ("J", "4 * W", "W"), ("J", "W", "4 * W"), ("J", "2 * W", "d"), ("1", "d", "W"))
    of_model = (("(m - 1) * L", "F", "d"), ("L", "d", "F"), ("L", "d", "d"))
    counts: dict[tuple[int, ...], list[str]] = defaultdict(list)
    names: dict[tuple[int, ...], tuple[str, str]] = {}
    for count, rows, columns in (*ours, *of_model):
        shape = tuple(term("", side, at).value for side in (rows, columns))
        counts[shape].append(count)
        if (count, rows, columns) in ours:
            names.setdefault(shape, (rows, columns))
    return [
        f"({' + '.join(counts[shape])}) * ({element} * {rows} * {columns} + {gram} * min({rows}, {columns})**2)"
        for shape, (rows, columns) in names.items()
    ]


def saved(config: RunConfig, at: Symbols) -> list[Term]:
    """What autograd keeps of the masked text's pass, the predictor and the penalty; the target's pass keeps nothing."""
    half = config.precision == "bfloat16"
    lines = [
        term("T-JEPA: encoder on the masked text", "E_encoder + R", at),
        term("T-JEPA: features, and where they are seen", "4 * R * d + 16 * B * U + B * U * (4 * d + 8)", at),
        term("T-JEPA: seen features, normed", f"{'J * ' if half else ''}w * B * U * d", at),
        term("T-JEPA: predictor's norms", "B * M * (2 * J * 4 * W + (2 * J + 1) * 8)", at),
        term("T-JEPA: predictor's turns", "8 * B * T * (W // (2 * A))", at),
        term("T-JEPA: predictor's attention", "J * B * (w * 2 * M * W + w * 3 * U * W + 4 * M * A)", at),
        term("T-JEPA: predictor's matrices' inputs", "J * w * B * M * 10 * W + w * B * M * W", at),
        term("T-JEPA: predictions and their targets", "2 * 4 * B * M * d", at),
    ]
    if half:
        lines.append(term("T-JEPA: predictor's matrices as bfloat16", f"2 * ({MATRICES})", at))
    if _penalised(config):
        casts = " + 2 * w * B * U * d" if half else ""
        lines.append(term("T-JEPA: penalty", f"B * U * (4 * d + 8){casts} + 8 * d + w * d**2", at))
    return lines


def _penalised(config: RunConfig) -> bool:
    return bool(config.jepa.variance_weight or config.jepa.covariance_weight)
