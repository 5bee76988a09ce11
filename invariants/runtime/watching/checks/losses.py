"""RUN-28, 29, 49, and the weights of RUN-12: what the gradient at the outputs tells of the loss.

Read in the steps that `Loop.looked` names; see reading.py for how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from karat.invariants.run.cadence import LOOKS
from karat.invariants.run.rule import Severity
from karat.invariants.run.run12_accumulation import RULE as ACCUMULATION
from karat.invariants.run.run28_first_loss import MORE, most
from karat.invariants.run.run28_first_loss import RULE as FIRST_LOSS
from karat.invariants.run.run29_softmax import RULE as SOFTMAX
from karat.invariants.run.run49_reduction import RULE as REDUCTION
from karat.invariants.runtime.preflight.first_loss import LOW
from karat.invariants.runtime.preflight.probe import NotRun
from karat.invariants.runtime.preflight.trees import leaves, spelled
from karat.invariants.runtime.watching.captured import Captured
from karat.invariants.runtime.watching.check import Check, Moment
from karat.invariants.runtime.watching.functions import Functions
from karat.invariants.runtime.watching.heard import harmless
from karat.invariants.runtime.watching.loop import DENSE, Loop
from karat.invariants.runtime.watching.reading import Reading, part, read, read_binary, read_squashed, simplex
from karat.invariants.runtime.watching.replay import Replay
from karat.invariants.runtime.watching.weights import Weights, judged, judged_by_losses, judged_undivided

MOST_OUTPUTS = 4
GUESSED = 3.0
"""Times ln(classes) where the classes are not declared: inputs that are not normalised do so much."""


class Losses(Check):
    rules = (FIRST_LOSS, SOFTMAX, REDUCTION, ACCUMULATION)
    interval = LOOKS
    of_forward = True

    def __init__(self) -> None:
        self._versions: dict[Any, int] = {}
        self._first: set[str] = set()
        self._resumed: dict[int, bool] = {}
        self._weights = Weights()
        self._open = False
        self._why = "no output of the model with a gradient was seen"

    def start(self, loop: Loop) -> None:
        if (loop.spec.accumulation or 1) < 2:
            loop.rest(self, "log")

    def log(self, loop: Loop, logged: Mapping[str, Any]) -> None:
        """The losses of the batches of a step, where several are declared."""
        undivided = self._weights.undivided
        if (loss := logged.get("loss")) is None:
            return
        if undivided.before and loop.forwards == loop.applied:
            evidence, batches = undivided.late(loss)
            judged_undivided(loop, loop.step - 1, evidence, batches)
        elif loop.step - loop.first >= DENSE:
            loop.rest(self, "log")
        else:
            undivided.log(loss, partial(harmless, loop, self))

    def forward(
        self, loop: Loop, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        captured = loop.captured
        if captured is None or not torch.is_grad_enabled():
            return
        self._open = True
        if captured.kwargs is kwargs:  # the forward that was kept just now; an empty tuple is always the same
            self._versions = {path: t._version for path, t in captured.outputs.items()}
            self._weights.begin(loop, self)
            self._square(loop, output)
        elif loop.dense(loop.step):
            self._weights.follow(output)
            self._square(loop, output)

    def _square(self, loop: Loop, output: Any) -> None:
        """Follows the gradient at an output that may be of a mean square error, until that was judged."""
        batches = loop.spec.accumulation or 1
        if batches < 2 or loop.step - loop.first >= DENSE or len(self._weights.undivided.squares) >= batches:
            return
        several = [t for _, t in leaves(output) if t.requires_grad and t.is_floating_point() and t.ndim]
        if several:
            self._weights.undivided.follow(max(several, key=Tensor.numel), partial(harmless, loop, self), batches)

    def look(self, loop: Loop, moment: Moment) -> None:
        if moment.index not in self._resumed:
            self._resumed[moment.index] = bool(moment.optimizer.state) and not moment.closure
        if len(self._resumed) == len(loop.optimizers):
            loop.rest(self, "look")

    def before_step(self, loop: Loop, moment: Moment) -> None:
        captured = loop.captured
        if captured is None or not captured.gradients:
            return
        untouched = [
            path for path, g in captured.gradients.items()
            if path in captured.outputs and captured.outputs[path]._version == self._versions.get(path, -1)
        ][:MOST_OUTPUTS]  # fmt: skip
        for path in untouched:
            reading = read(captured.outputs[path], captured.gradients[path], captured.most)
            if reading is not None and not reading.against_each_other:
                captured.readings[path] = reading
        reading = captured.readings.get(captured.main) if captured.main is not None else None
        if reading is None:
            self._why = "the gradient at the outputs is not that of a cross-entropy of class indices"
            self._binary(loop, moment, captured)
            self._pairs(loop, moment, captured)
            self._by_losses(loop, moment)
            return
        self._softmax(loop, moment, captured, reading)
        if captured.root not in self._first:
            self._first.add(captured.root)
            if moment.step == 0 and not loop.spec.pretrained and not self._resumed.get(moment.index, False):
                self._first_loss(loop, moment, reading)
        if loop.dense(moment.step):
            judged(loop, moment, reading, self._weights)
            self._by_losses(loop, moment)

    def _by_losses(self, loop: Loop, moment: Moment) -> None:
        if moment.step - loop.first < DENSE:
            judged_by_losses(loop, moment, self._weights)

    # -- 28 -----------------------------------------------------------------------------------------------------------

    def _first_loss(self, loop: Loop, moment: Moment, reading: Reading) -> None:
        declared = loop.spec.classes == reading.classes
        loss, even = reading.loss, math.log(reading.classes)
        evidence = f"first cross-entropy {loss:.4g} nats, ln {reading.classes} = {even:.4g}, {reading.counted} targets"
        held = loop.judge(
            FIRST_LOSS, moment.step,
            FIRST_LOSS.margin(loss, most(reading.classes) if declared else GUESSED * even + MORE),
            lambda: {
                "message": f"the first loss is {loss / even:.1f} times that of guessing evenly over {reading.classes} "
                "classes: the logits start too large, or the targets are not those of these classes",
                "evidence": evidence, "severity": Severity.FAIL if declared else Severity.WARN,
            },
        )  # fmt: skip
        if held and declared and loss < LOW * even:
            loop.found(
                FIRST_LOSS, "the first loss is far below that of guessing evenly: the input holds the targets, "
                "or the weights are trained already (say Spec(pretrained=True))",
                step=moment.step, margin=loss - LOW * even, evidence=evidence, severity=Severity.WARN,
            )  # fmt: skip

    # -- 29 -----------------------------------------------------------------------------------------------------------

    def _softmax(self, loop: Loop, moment: Moment, captured: Captured, reading: Reading) -> None:
        path = captured.main or ()
        wrong = simplex(reading.logits, captured.outputs[path].dtype)
        lowest = math.log(reading.classes - 1 + math.e) - 1
        loop.judge(
            SOFTMAX, moment.step, SOFTMAX.margin(float(wrong), 0.0),
            lambda: {
                "message": "the model gives probabilities and the loss takes their softmax again: it cannot fall below "
                f"{lowest:.3f}. Give the loss the logits",
                "where": spelled(path) if path else "",
                "evidence": f"rows of {reading.classes} in [0, 1] with sum 1, gradient w (softmax(output) - onehot)",
            },
        )  # fmt: skip

    def _binary(self, loop: Loop, moment: Moment, captured: Captured) -> None:
        path = captured.main
        if path is None or path not in captured.gradients:
            return
        if self._squashed(loop, moment, captured):
            return
        reading = read_binary(captured.outputs[path], captured.gradients[path])
        if reading is None:
            self._linear(loop, moment, captured)
            return
        low, high = float(reading.logits.min()), float(reading.logits.max())
        wrong = low >= 0 and high <= 1 and high - low > 1e-3 and _last_function(captured, loop) == "sigmoid"
        loop.judge(
            SOFTMAX, moment.step, SOFTMAX.margin(float(wrong), 0.0),
            lambda: {
                "message": "the model ends in a sigmoid and the loss takes its sigmoid again, so that no probability "
                "is below 0.5. Give the loss the logits",
                "evidence": f"outputs from {low:.3g} to {high:.3g}, gradient w (sigmoid(output) - y)",
            },
        )  # fmt: skip

    def _squashed(self, loop: Loop, moment: Moment, captured: Captured) -> bool:
        """A softmax between the outputs and a loss that takes logits; and a softmax over one output."""
        path = captured.main or ()
        x = captured.outputs[path]
        twice = read_squashed(x, captured.gradients[path])
        alone = x.ndim > 1 and x.shape[-1] == 1 and bool((x == 1).all()) and _last_function(captured, loop) == "softmax"
        if not twice and not alone:
            return False
        message = (
            "the loop takes the softmax of the outputs and the loss another. Give the loss the logits"
            if twice
            else "a softmax over one output is 1 for every input: it takes a sigmoid, or two outputs"
        )
        evidence = "gradient of cross_entropy(softmax(output))" if twice else f"outputs {tuple(x.shape)}, all exactly 1"
        loop.judge(
            SOFTMAX, moment.step, SOFTMAX.margin(1.0, 0.0), lambda: {"message": message, "evidence": evidence}
        )  # fmt: skip
        return True

    def _linear(self, loop: Loop, moment: Moment, captured: Captured) -> None:
        """The gradient of nll_loss is the same in every row and at the target alone; it is meant for log-probabilities."""
        path = captured.main
        if path is None or captured.outputs[path].ndim < 2 or captured.outputs[path].shape[-1] < 3:
            return
        if captured.gradients[path].dtype is torch.float16:  # the other entries may have underflowed
            return
        x, g = part(captured.outputs[path]).double(), part(captured.gradients[path]).double()
        alive = g.any(-1)
        x, g = x[alive], g[alive]
        if len(g) < 4 or bool(((g != 0).sum(-1) != 1).any()) or float(g.max()) > 0:
            return
        w = -g.sum(-1)
        if float(w.max() - w.min()) > 1e-3 * float(w.max()):
            return
        sums = x.exp().sum(-1)
        wrong = float((sums - 1).abs().max()) > 0.02
        given = (
            "probabilities" if simplex(x, captured.outputs[path].dtype) else "numbers that are not log-probabilities"
        )
        loop.judge(
            SOFTMAX, moment.step, SOFTMAX.margin(float(wrong), 0.0),
            lambda: {
                "message": f"the loss is minus the output at the target, as of nll_loss, and is given {given}: "
                "it has no lower end. nll_loss takes log_softmax of the logits",
                "evidence": f"sum of exp over the classes is {float(sums.mean()):.4g}, not 1", "severity": Severity.WARN,
            },
        )  # fmt: skip

    def _pairs(self, loop: Loop, moment: Moment, captured: Captured) -> None:
        """The mean square over all pairs has the gradient 2 / N (x - mean of the targets): the same target for each."""
        path = captured.main
        if path is None or not captured.outputs[path].ndim or path not in captured.gradients:
            return
        if captured.outputs[path].numel() != captured.outputs[path].shape[0]:
            return
        x, g = captured.outputs[path].double().flatten(), captured.gradients[path].double().flatten()
        if len(x) < 8 or not bool(x.isfinite().all() & g.isfinite().all()) or float(x.std()) < 1e-3:
            return
        slope = 2 / len(x)
        rest = x - g / slope
        target = float(rest.median())
        one = float((rest - target).abs().max()) <= 1e-4 * (abs(target) + float(x.abs().max()))
        plain = abs(target - round(target * 2) / 2) < 1e-3  # the 0, 1 and 0.5 of adversarial losses, and of penalties
        loop.judge(
            SOFTMAX, moment.step, SOFTMAX.margin(float(one and not plain and captured.outputs[path].ndim == 2), 0.0),
            lambda: {
                "message": f"a mean square compares every output with one number, {target:.4g}: outputs "
                f"{tuple(captured.outputs[path].shape)} broadcast against targets ({len(x)},), so that samples are "
                "compared with other samples' targets",
                "evidence": "gradient 2 / N (output - mean of all targets) in every row", "severity": Severity.WARN,
            },
        )  # fmt: skip

    def after_step(self, loop: Loop, moment: Moment) -> None:
        if self._open:
            self._weights.end()
            self._open = False

    def finish(self, loop: Loop) -> None:
        undeclared = "" if loop.spec.accumulation else "accumulation is not declared: Spec(accumulation=…)"
        for rule in self.rules:
            if not loop.tallies[rule.id].checks:
                seen = rule is REDUCTION and loop.tallies[SOFTMAX.id].checks
                why = "no step told how its rows are weighted" if seen else self._why
                loop.not_checked(rule, undeclared if rule is ACCUMULATION and undeclared else why)

    def drop(self) -> None:
        self._weights.end()
        self._versions = {}


def _last_function(captured: Captured, loop: Loop) -> str:
    """The function whose result is the main output, of softmax and sigmoid: found in one forward more."""
    functions = Functions()
    try:
        with captured.undisturbed(), functions:
            outputs: dict[Any, Tensor] = Replay(captured, loop.spec, {}).outputs()
    except NotRun:
        return ""
    main = outputs.get(captured.main or ())
    if main is None:
        return ""
    found = [
        name for name, result in functions.squashed.values()
        if result.numel() == main.numel() and torch.equal(result.detach().flatten(), main.flatten())
    ]  # fmt: skip
    return found[0] if found else ""
