"""Bytes that a step holds besides weights and optimizer: what is saved for the backward pass, and the passing peak.

Saved is what autograd keeps between the two passes, by unique storage, without parameters and without the rounded weights
that a GF16 layer holds anyway. Symbols as in formulas.py; w is the bytes of a number in the products (4, or 2 under
bfloat16). A byte is a byte: 8-bit codes of a ternary layer have no factor.
"""

from __future__ import annotations

from karat.trainer.budget import jepa
from karat.trainer.budget.formulas import lasting, model_parameters, parameters, symbols
from karat.trainer.budget.terms import Symbols, Term, term, total
from karat.trainer.config import RunConfig
from karat.trainer.objectives.next_token import LOGITS_AT_A_TIME

STATES = "4 * R * d + (S - 1) * n * 4 * R * d"
"""The states of the residual streams: equal at the start, where they are one array."""


def saved(config: RunConfig) -> list[Term]:
    """What a training step keeps from its forward pass for its backward pass, by kind of layer."""
    at, encoder = symbols(config), _encoder(config)
    lines = [
        *encoder,
        term("head: gradient of its input", "4 * R * d", at),
        term("head: gradient of its weight", "4 * V * d", at),
    ]
    if config.model.nca:
        lines.append(term("automaton", "8 * d + k * 4 * (c**2 + 2 * c * h + 3 * c * s)", at))
    return [*lines, *jepa.saved(config, _with_encoder(config, at))] if config.jepa.enabled else lines


def _with_encoder(config: RunConfig, at: Symbols) -> Symbols:
    """E_encoder: what another pass of the encoder saves. Matrices turned into bfloat16 are kept by autocast for all passes."""
    again = total(_encoder(config)) - (0 if config.model.ternary else total(_matrices(config, at)))
    return {**at, "E_encoder": again}


def _encoder(config: RunConfig) -> list[Term]:
    """What one pass of the model without its head saves."""
    at = symbols(config)
    lines = [term("tokens", "8 * R", at), *_norms(config, at), *_attention(config, at), *_feedforward(config, at)]
    if config.model.context_features:
        lines.append(term("context features", "N * 4 * R * d", at))
    if config.model.dropout:
        number = "4" if config.model.ternary else "w"
        lines.append(term("dropout: masks", f"S * {number} * R * d", at))
    lines += _matrices(config, at)
    return [*lines, *(_dynamic_streams(config, at) if config.model.dynamic_streams else _streams(config, at))]


def _half(config: RunConfig) -> bool:
    return config.precision == "bfloat16"


def _norms(config: RunConfig, at: Symbols) -> list[Term]:
    """The residual streams, and what norms read and give, are float32 under bfloat16 too."""
    if config.model.norm == "rmsnorm":  # its output before the gain, and one scale of a row
        return [term("norms", "(S + 1) * 4 * R * (d + 1)", at)]
    return [term("norms", "(S + 1) * R * (4 * d + 8)", at)]  # its input, a mean and a deviation of a row


def _attention(config: RunConfig, at: Symbols) -> list[Term]:
    model, lines = config.model, []
    if model.ternary:
        lines.append(term("attention: codes of both inputs", "L * 2 * R * (d + 4)", at))
    else:
        lines.append(term("attention: input of QKV", "L * w * R * d", at))
    made = "4" if model.ternary else "w"
    if model.qk_norm:
        lines.append(term("attention: normed Q, K and scales", f"L * 2 * {made} * R * (d + H)", at))
    if model.ternary and _half(config):
        lines.append(term("attention: Q, K, V as bfloat16", "L * 3 * w * R * d", at))
    else:
        if model.positions == "rope":
            lines.append(term("attention: turned Q, K", f"L * 2 * {made} * R * d", at))
        if model.positions == "rope" or model.qk_norm:
            lines.append(term("attention: V, in the array of QKV", f"L * 3 * {made} * R * d", at))
        else:
            lines.append(term("attention: Q, K, V", f"L * 3 * {made} * R * d", at))
    return [*lines, term("attention: output, one sum of a query", "L * R * (w * d + 4 * H)", at)]


def _feedforward(config: RunConfig, at: Symbols) -> list[Term]:
    model = config.model
    made, hidden = ("4", 3 if model.activation == "swiglu" else 1) if model.ternary else ("w", 0)
    inputs = 2 if model.activation == "swiglu" else 1
    if model.ternary:
        return [
            term("feed-forward: codes of its inputs", f"L * {inputs} * R * (d + 4) + L * R * (F + 4)", at),
            term("feed-forward: hidden units", f"L * {hidden} * {made} * R * F", at),
        ]
    casts = inputs if _half(config) else 1  # gate and up each turn float32 into bfloat16
    return [
        term("feed-forward: its input", f"L * {casts} * w * R * d" if casts > 1 else "L * w * R * d", at),
        term("feed-forward: hidden units", f"L * {4 if inputs == 2 else 2} * w * R * F", at),
    ]


def _matrices(config: RunConfig, at: Symbols) -> list[Term]:
    if config.model.ternary:
        return [term("matrices as trits and scales", "L * (4 * d**2 + m * d * F) * (G + 4) // G", at)]
    if _half(config):
        return [term("matrices as bfloat16", "L * 2 * (4 * d**2 + m * d * F)", at)]
    return []


def _streams(config: RunConfig, at: Symbols) -> list[Term]:
    if config.model.streams == 1:
        return []
    return [
        term("streams: states", STATES, at),
        term("streams: outputs of sublayers", "S * 4 * R * d", at),
        term("streams: coefficients", "S * 4 * (p + 3 * n + n**2)", at),
    ]


def _dynamic_streams(config: RunConfig, at: Symbols) -> list[Term]:
    return [
        term("streams: states", STATES, at),
        term("streams: outputs of sublayers", "S * 4 * R * d", at),
        term("streams: states normed, and with gains", "S * 4 * R * (n * d + 1) + S * 4 * n * R * d", at),
        term("streams: mixtures and gates of a token", "S * R * 4 * (p + 3 * n + n**2)", at),
        term("streams: maps with scales, gains", "S * n * d * 4 * (p + 2 * n + 1)", at),
    ]


def passing(config: RunConfig) -> dict[str, list[Term]]:
    """What each part of a step holds at its fullest beyond weights and state: part of the step -> lines.

    The backward pass frees what is saved while it makes gradients, so at its start it has the one and at its end the other.
    """
    model, at = config.model, symbols(config)
    chunk = max(1, LOGITS_AT_A_TIME // model.vocab)
    count = total(parameters(config))
    at = {
        **at,
        "Z": min(at["R"], chunk) * model.vocab,
        "N": count,
        "saved": total(saved(config)),
        "N_model": total(model_parameters(config)),
        "D": _largest(config),
    }
    arrays = 3 if chunk < at["R"] else 2  # logits, and of this and the last chunk their logarithms
    streams = "2 * n" if model.streams > 1 else "1"
    wide = 4 if model.ternary else 2
    gradients = next(line for line in lasting(config) if line.part == "gradients")
    steps = {
        "forward": [
            term("saved so far", "saved", at),
            term("the head's logits, a chunk at a time", f"4 * {arrays} * Z + 4 * V * d", at),
            term("hidden states of this step and the last", "2 * 4 * R * d", at),
        ],
        "backward, first": [
            term("saved", "saved", at),
            term("gradients at work", f"4 * max(V * d + R * d, {wide} * R * F + {streams} * R * d) + 8 * R * d", at),
        ],
        "backward, last": [
            gradients,
            term("gradients of the embedding, and of its input", f"4 * V * d + {streams} * 4 * R * d", at),
        ],
        "update": [gradients, *_update(config, at)],
    }
    if config.jepa.enabled:  # of the whole text there are gradients by then: they wait for those of the masked text
        at = _with_encoder(config, at)
        steps["backward, masked text"] = [
            gradients,
            term("saved of the masked text", "E_encoder", at),
            term("gradients at work", f"4 * ({wide} * R * F + {streams} * R * d)", at),
        ]
    if config.ema.enabled or config.jepa.enabled:
        compared = term("averages before, and comparisons", "4 * N_model + 7 * 4 * D", at)
        steps["average"] = [gradients, compared, term("hidden states", "4 * R * d", at)]
    return steps


def _largest(config: RunConfig) -> int:
    """Numbers of the largest parameter of the model, which averages are of."""
    at = symbols(config)
    candidates = [at["V"] * at["d"], 3 * at["d"] ** 2, at["d"] * at["F"]]
    if config.model.positions == "learned":
        candidates.append(at["T"] * at["d"])
    if config.model.context_features:
        candidates.append(at["N"] * at["V"] * at["d"])
    if config.model.dynamic_streams:
        candidates.append(at["S"] * (at["p"] + 2 * at["n"]) * at["n"] * at["d"])
    return max(candidates)


def _update(config: RunConfig, at: Symbols) -> list[Term]:
    lines = [term("hidden states", "4 * R * d", at)]
    name = config.optim.name
    if name.startswith("muon"):
        # By shape: the stack, what it becomes, what that becomes, and two Gram matrices; made in bfloat16 they are half.
        stack, gram = ("10", "4") if config.optim.ns_dtype == "bfloat16" else ("12", "8")
        feedforward = f"(m - 1) * L * ({stack} * d * F + {gram} * min(d, F)**2)"
        directions, stacks = "4 * L * (d**2 + m * d * F)", [feedforward, f"3 * L * {stack} * d**2"]
        if config.jepa.enabled:
            directions += f" + 4 * ({jepa.MATRICES})"
            stacks += jepa.muon_stacks(at, stack, gram)
        lines.append(term("Muon: directions of a group", directions, at))
        lines.append(term("Muon: a stack and its iterates", f"max({', '.join(stacks)})", at))
    elif name == "lion":
        largest = "max(D, 4 * W**2, 2 * W * d)" if config.jepa.enabled else "D"
        lines.append(term("Lion: an update", f"2 * 4 * {largest}", at))
    return lines


def peak(config: RunConfig) -> tuple[str, int]:
    """The part of a step that holds most, and how many bytes that is with weights and state."""
    held = total(lasting(config)) - next(line.value for line in lasting(config) if line.part == "gradients")
    name, lines = max(passing(config).items(), key=lambda item: total(item[1]))
    return name, held + total(lines)
