"""Parameters, memory that stays and floating-point operations of a configuration: sums of formulas, without a model.

Symbols: V vocabulary, d width, L layers, H heads, B rows of a batch, T tokens of a row (context), R = B·T, F units of the
feed-forward and m its matrices, n residual streams, p = n! their permutations, S = 2L sublayers. A floating-point operation
is an addition or a multiplication in a product of matrices; sums element by element (norms, activations, AdamW) are left
out. Attention is counted over all T² pairs, masked or not, as torch's counter does.
"""

from __future__ import annotations

import math

from karat.core.formulas.ternary import GROUP
from karat.trainer.budget import jepa
from karat.trainer.budget.terms import Symbols, Term, term, total
from karat.trainer.config import RunConfig
from karat.trainer.objectives.nca import CELLS, STATES, NcaConfig

FLOAT = 4
"""Bytes of a float32 number."""
HALF = 2
"""Bytes of a bfloat16 number."""


def symbols(config: RunConfig) -> Symbols:
    """What the formulas mention, for a run's configuration."""
    model, nca = config.model, NcaConfig()
    return {
        "V": model.vocab,
        "d": model.d_model,
        "L": model.n_layers,
        "S": 2 * model.n_layers,
        "H": model.n_heads,
        "B": config.batch_size,
        "T": model.context,
        "R": config.batch_size * model.context,
        "F": model.feedforward_width,
        "m": 3 if model.activation == "swiglu" else 2,
        "n": model.streams,
        "p": math.factorial(model.streams),
        "w": HALF if config.precision == "bfloat16" else FLOAT,
        "h": nca.hidden,
        "k": nca.steps,
        "c": CELLS,
        "s": STATES,
        "G": GROUP,
        "ns": config.optim.ns_steps,
        "N": model.context_features,
        **jepa.symbols(config),
    }


def parameters(config: RunConfig) -> list[Term]:
    """How many numbers are trained, by part."""
    lines, at = model_parameters(config), symbols(config)
    if config.model.nca:
        lines.append(term("automaton", "d * h + 9 * s * h + h * s + s", at))
    return [*lines, *jepa.parameters(at)] if config.jepa.enabled else lines


def model_parameters(config: RunConfig) -> list[Term]:
    """Those of the model itself, which averages and T-JEPA's target follow."""
    model, at = config.model, symbols(config)
    lines = [term("embedding, tied head", "V * d", at)]
    if model.positions == "learned":
        lines.append(term("positions", "T * d", at))
    if model.context_features:
        lines.append(term("context features", "N * (V * d + 1)", at))
    lines += [
        term("attention", "L * 4 * d**2", at),
        term("feed-forward", "L * m * d * F", at),
        term("norms", "(S + 1) * d", at),
    ]
    if model.dynamic_streams:
        lines.append(term("streams", "S * ((p + 2 * n) * (n * d + 1) + n * d + 3)", at))
    elif model.streams > 1:
        mixing = "1" if model.stream_biases and model.streams == 2 else "p"
        lines.append(term("streams", f"S * ({mixing} + {4 if model.stream_biases else 2} * n)", at))
    return lines


def trained_by_muon(config: RunConfig) -> list[Term]:
    """The parameters that Muon moves; none where it is not asked for."""
    if not config.optim.name.startswith("muon"):
        return []
    at = symbols(config)
    lines = [term("attention", "L * 4 * d**2", at), term("feed-forward", "L * m * d * F", at)]
    if config.model.nca:
        lines.append(term("automaton", "d * h + 9 * s * h + h * s", at))
    return [*lines, *jepa.trained_by_muon(at)] if config.jepa.enabled else lines


def lasting(config: RunConfig) -> list[Term]:
    """Bytes that are held from one step to the next, by what holds them; gradients too, until the next step begins."""
    count, model = total(parameters(config)), config.model
    muon, own = total(trained_by_muon(config)), total(model_parameters(config))
    at = {**symbols(config), "N": count, "N_muon": muon, "N_rest": count - muon, "N_model": own}
    lines = [term("weights", "4 * N", at), term("gradients", "4 * N", at)]
    if muon:
        lines.append(term("Muon: one momentum", "4 * N_muon", at))
    if config.optim.name.endswith("lion"):
        lines.append(term("Lion: one momentum", "4 * N_rest", at))
    else:
        lines.append(term("AdamW: two moments", "2 * 4 * N_rest", at))
    if config.ema.enabled:
        lines.append(term("averages of the weights", "4 * N_model", at))
        lines.append(term("averages: scratch, two of each weight", "2 * 4 * N_model", at))
    if model.gf16:
        lines.append(term("GF16: rounded weights, and what they are of", "2 * 4 * L * m * d * F", at))
    return [*lines, *jepa.lasting(config, at)] if config.jepa.enabled else lines


def forward_flops(config: RunConfig) -> list[Term]:
    """Operations of one step's forward pass, in which the head's gradients are made too."""
    at, encoder = symbols(config), _encoder_forward(config)
    lines = [
        *encoder,
        term("head: logits", "2 * R * V * d", at),
        term("head: gradients, made ahead", "4 * R * V * d", at),
    ]
    if config.model.nca:
        lines.append(term("automaton", "2 * d * h + k * 2 * c * h * 10 * s", at))
    if config.jepa.enabled:
        lines += jepa.forward_flops(config, {**at, "F_encoder": total(encoder)})
    return lines


def _encoder_forward(config: RunConfig) -> list[Term]:
    """One pass of the model without its head."""
    model, at = config.model, symbols(config)
    lines = [
        term("attention: matrices", "8 * L * R * d**2", at),
        term("attention: scores and mixing", "4 * L * B * T**2 * d", at),
        term("feed-forward", "2 * L * m * R * d * F", at),
    ]
    if model.dynamic_streams:
        lines.append(term("streams", "S * R * d * (2 * n * (p + 2 * n) + 2 * n + 2 * n**2)", at))
    elif model.streams > 1:
        lines.append(term("streams", "S * R * d * (4 * n + 2 * n**2)", at))
    return lines


def backward_flops(config: RunConfig) -> list[Term]:
    """Operations of one step's backward pass: two products for each of the forward's; attention makes its scores anew."""
    at, encoder = symbols(config), _encoder_backward(config)
    lines = list(encoder)
    if config.model.nca:
        lines.append(term("automaton", "2 * (2 * d * h + k * 2 * c * h * 10 * s) - 2 * c * h * 9 * s", at))
    if config.jepa.enabled:
        lines += jepa.backward_flops(config, {**at, "F_encoder_back": total(encoder)})
    return lines


def _encoder_backward(config: RunConfig) -> list[Term]:
    """Of one pass of the model without its head."""
    model, at = config.model, symbols(config)
    lines = [
        term("attention: matrices", "2 * 8 * L * R * d**2", at),
        term("attention: scores anew, and 4 gradients", "10 * L * B * T**2 * d", at),
        term("feed-forward", "2 * 2 * L * m * R * d * F", at),
    ]
    if model.dynamic_streams:
        lines.append(term("streams", "2 * S * R * d * (2 * n * (p + 2 * n) + 2 * n + 2 * n**2)", at))
    elif model.streams > 1:
        lines.append(term("streams", "2 * S * R * d * (4 * n + 2 * n**2)", at))
    return lines


def update_flops(config: RunConfig) -> list[Term]:
    """Operations of one optimizer step: Muon's iterations on each matrix; AdamW and Lion have no products."""
    if not config.optim.name.startswith("muon"):
        return []
    at = symbols(config)
    lines = [
        term("Muon: attention", "ns * 4 * L * 6 * d**3", at),
        term("Muon: feed-forward", "ns * L * m * (4 * min(d, F)**2 * max(d, F) + 2 * min(d, F)**3)", at),
    ]
    if config.model.nca:
        inner = "4 * min({0})**2 * max({0}) + 2 * min({0})**3"
        shapes = ("h, d", "h, 9 * s", "s, h")
        lines.append(term("Muon: automaton", f"ns * ({' + '.join(inner.format(shape) for shape in shapes)})", at))
    return [*lines, *jepa.update_flops(at)] if config.jepa.enabled else lines
