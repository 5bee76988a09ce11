"""The network's inputs: which one is the sequence, how the batch axis is found, and what to put in place of a value."""

from __future__ import annotations

import contextlib
import inspect

import torch
from torch import Tensor, nn

from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.preflight.probed import Call, Probed
from karat.invariants.runtime.preflight.trees import Path, leaves

OTHER_THAN_TOKENS = ("mask", "label", "target", "type", "position", "length", "cache", "index")
"""Parts of argument names that say: not the sequence itself."""
PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
NO_CALL = (
    "loss_fn does not call the model itself, so that its inputs and outputs are not seen; name the module that it calls: "
    "Spec(network='encoder'), or give Spec(example=(inputs,))"
)


def argument(network: nn.Module, path: Path) -> str:
    """The name that the network gives the argument at a path, also where it was given by its place; "" where it has none."""
    if path[:1] == ("1",):
        return path[1] if len(path) > 1 else ""
    with contextlib.suppress(TypeError, ValueError):
        taken = [p for p in inspect.signature(network.forward).parameters.values() if p.kind in PLACED]
        if len(path) > 1 and path[1].isdigit() and int(path[1]) < len(taken):
            return taken[int(path[1])].name
    return ""


def is_other(network: nn.Module, path: Path) -> bool:
    """Whether the names of an input say that it is not the sequence itself. One given by its place and called target may be
    a decoder's own input."""
    if any(part in name for name in path for part in OTHER_THAN_TOKENS):
        return True
    name = argument(network, path).lower() if path[:1] == ("0",) else ""
    return "target" not in name and any(part in name for part in OTHER_THAN_TOKENS)


def called(subject: Probed) -> tuple[Call, Tensor]:
    """The network's call and main output in eval mode; NotRun when there is none."""
    call = subject.forward()
    if call is None:
        raise NotRun(NO_CALL)
    if call.output is None:
        raise NotRun("the network's output holds no floating-point tensor")
    return call, call.output


def jittered(subject: Probed) -> tuple[Call, Tensor]:
    """The same with noise on all weights, under which the model is left."""
    subject.jitter()
    if "jittered" not in subject.notes:
        call, output = called(subject)
        subject.notes["jittered"] = call, output.clone()
    told: tuple[Call, Tensor] = subject.notes["jittered"]
    return told


def answer(
    subject: Probed, edits: dict[Path, Tensor] | None = None, *, seed: int = 0, training: bool = False
) -> Tensor:
    """The main output, once `called` has shown that there is one."""
    call = subject.forward(edits, seed=seed, training=training)
    if call is None or call.output is None:
        raise NotRun("the network is called in one forward and not in another")
    return call.output


def differs_by_itself(subject: Probed, base: Tensor) -> float:
    """How far two forwards with equal inputs differ: what a comparison must allow beside rounding."""
    again = answer(subject)
    if again.shape != base.shape:
        raise NotRun("two forwards with equal inputs give outputs of different shapes")
    return 4 * float((again - base).abs().max())


def sequence(subject: Probed, call: Call, output: Tensor) -> tuple[Path, Tensor]:
    """The input (B, T) of tokens, or (B, T, features), to which the output (B, T, …) belongs; NotRun without one, and
    where there are several and nothing tells which."""
    fits = [
        (path, t) for path, t in call.inputs.items()
        if t.ndim >= 2 and output.ndim >= 2 and t.shape[:2] == output.shape[:2] and t.dtype is not torch.bool
        and not is_other(subject.network, path)
    ]  # fmt: skip
    tokens = [(path, t) for path, t in fits if not t.is_floating_point() and t.ndim == 2]
    features = [(path, t) for path, t in fits if t.is_floating_point() and t.ndim == 3 and output.ndim == 3]
    if not tokens and not features:
        raise NotRun("no input (batch, time) whose first two axes are those of the output: not a model of tokens")
    found = _the_one(subject, tokens or features)
    if found[1].shape[1] < 2:
        raise NotRun("sequences of length 1: there is no other position to look at")
    if not changeable(found[1]):
        raise NotRun("the sequences hold one token alone: there is no other to put in its place")
    return found


def _the_one(subject: Probed, fits: list[tuple[Path, Tensor]]) -> tuple[Path, Tensor]:
    """Of several inputs of one shape, as of an encoder and a decoder, that whose shift the targets are."""
    known = [(path, t) for path, t in fits if path == subject.notes.get("sequence")]
    varied = [(path, t) for path, t in fits if t.is_floating_point() or _kinds(t) > 2] or fits
    several = known or varied
    if len(several) > 1:
        several = [(path, t) for path, t in several if next_token(subject, t)]
    if len(several) != 1:
        raise NotRun("several inputs have the shape of the output: which of them the outputs belong to is not known")
    return several[0]


def _kinds(t: Tensor) -> int:
    """How many distinct values there are, counted up to three."""
    low, high = t.min(), t.max()
    return int(low != high) + 1 + int(bool(((t != low) & (t != high)).any()))


def changeable(x: Tensor) -> bool:
    """Whether another value can be put in place of each without leaving the values that were seen: a token that the
    batch does not hold may not be one of the model's."""
    return x.numel() > 0 and (bool(x.isfinite().all()) if x.is_floating_point() else _kinds(x) > 1)


def next_token(subject: Probed, tokens: Tensor) -> bool:
    """Whether the batch holds the same tokens shifted by one, or in one tensor with one more at the end."""
    if tokens.is_floating_point():
        return False
    if "next token" in subject.notes:
        return bool(subject.notes["next token"])
    for path, t in leaves(subject.batch):
        if t.ndim != 2 or t.is_floating_point() or t.shape[0] != tokens.shape[0]:
            continue
        if t.shape[1] == tokens.shape[1] + 1 and torch.equal(t[:, :-1], tokens):
            return True
        if t.shape == tokens.shape and torch.equal(t[:, :-1], tokens[:, 1:]):
            return True
        if path and path[-1] == "labels" and t.shape == tokens.shape and torch.equal(t, tokens):
            return True
    return False


def time_is_second(subject: Probed, tokens: Tensor) -> bool:
    """Whether the axes of a sequence are known to be (batch, time): declared, or from targets shifted along the second."""
    spec = subject.spec
    return bool(spec.causal or spec.batch_independent) or next_token(subject, tokens)


def others(x: Tensor, generator: torch.Generator) -> Tensor:
    """A value of the same kind that differs nearly everywhere: another token of the same batch, or noise on a number
    that keeps to the range of the others. For what is `changeable`; what is not comes back as it is."""
    if x.is_floating_point():
        low, high = float(x.float().min()), float(x.float().max())
        size = float(x.float().std()) if x.numel() > 1 else 0.0
        noise = torch.randn(x.shape, generator=generator) * (size + 1e-2 * max(abs(low), abs(high)) + 1e-3)
        moved = x + noise.to(x.device, x.dtype)
        return moved.clamp(low, high) if low < high else moved
    values = torch.unique(x)
    if len(values) < 2:
        return x.clone()
    shift = torch.randint(1, len(values), x.shape, generator=generator).to(x.device)
    replacement: Tensor = values[(torch.searchsorted(values, x) + shift) % len(values)]
    return replacement


def structural(x: Tensor, size: int) -> bool:
    """Whether whole numbers look like offsets, edges or lengths of a structure, that may not be replaced by others."""
    if x.is_floating_point():
        return False
    if x.ndim == 1:
        return x.shape[0] != size or (size > 1 and bool((x[1:] >= x[:-1]).all()))
    return x.ndim != 2 or x.shape[0] != size


def batch_inputs(call: Call, output: Tensor, declared: bool) -> dict[Path, Tensor]:
    """The inputs with the batch axis first; NotRun when it is not plain which axis that is."""
    sized = {path: t for path, t in call.inputs.items() if t.ndim}
    if not sized or not output.ndim:
        raise NotRun("the network has no tensor input, or its output has no axes")
    size = output.shape[0]
    if output.shape == (size, size) and not declared:
        raise NotRun("the output is a table of samples against samples, as of a contrastive loss")
    if size < 2:
        raise NotRun("a batch of one sample: pass two or more")
    if not declared and any(t.shape == (size, size) for t in sized.values()):
        raise NotRun("an input is a table of samples against samples, as of a graph")
    moved = {
        path: t for path, t in sized.items()
        if t.shape[0] == size and t.dtype is not torch.bool and changeable(t) and not structural(t, size)
    }  # fmt: skip
    odd = [t for t in sized.values() if t.shape[0] != size]
    if not moved or any(not t.is_floating_point() for t in odd):
        raise NotRun("the first axis of inputs and output is not the batch's alone (a graph, or time first)")
    return {path: t for path, t in moved.items() if not any("mask" in name for name in path)}
