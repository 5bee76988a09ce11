"""Muon: the momentum of a matrix, orthogonalised by Newton-Schulz, is its update; matrices of one shape at once.

    B <- 0.95 B + 0.05 G;  O = NS_k(0.05 G + 0.95 B);  W <- (1 - lr·wd) W - lr sqrt(max(1, rows / columns)) O

The rule is torch.optim.Muon's. That class always iterates in bfloat16, one matrix after another; here the iteration may be
in float32, and a matrix that holds several maps side by side (queries, keys and values) is orthogonalised map by map.
Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial aX + b(XXᵀ)X + c(XXᵀ)²X: steep at 0, and within about 0.7 to 1.2 near 1."""
LEAST_NORM = 1e-7


def orthogonalised(matrices_NRC: Tensor, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Each matrix with its singular values moved towards 1: `steps` iterations of Newton-Schulz. (N, R, C), same shape.

    With 3 steps a singular value of 0.018 of the matrix's norm or more ends in 0.67..1.21, with 5 steps 0.0015 or more.
    The result has the type `dtype`.
    """
    a, b, c = COEFFICIENTS
    wide = matrices_NRC.transpose(1, 2) if matrices_NRC.shape[1] > matrices_NRC.shape[2] else matrices_NRC
    norms = torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(LEAST_NORM)
    x = (wide / norms).to(dtype)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.transpose(1, 2) if wide is not matrices_NRC else x
    return result


class Muon(Optimizer):
    """Over groups of matrices: {"params", "lr", "weight_decay", "momentum", "ns_steps", "blocks"}.

    blocks: how many maps each parameter of the group holds, one above the other; 1 where it is left out. ns_dtype is
    the type of the iteration. ValueError for a parameter that is not a matrix, or that its blocks do not divide.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
        ns_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.ns_dtype = ns_dtype
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps, "blocks": 1}
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2 or parameter.shape[0] % group["blocks"]:
                    raise ValueError(
                        f"Muon moves matrices of {group['blocks']} equal blocks, got a parameter of shape "
                        f"{tuple(parameter.shape)}: give norms, gates and embeddings to another optimizer"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter, group["momentum"])
                    rows, columns = parameter.shape[0] // group["blocks"], parameter.shape[1]
                    alike[rows, columns].append((parameter, direction.view(group["blocks"], rows, columns)))
            for (rows, columns), moves in alike.items():
                self._move(moves, group, group["lr"] * math.sqrt(max(1.0, rows / columns)))
        return loss

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look ahead along the running mean of the gradients."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        running, gradient = state["momentum_buffer"], parameter.grad
        assert gradient is not None
        running.lerp_(gradient, 1 - momentum)
        return gradient.lerp(running, momentum)

    def _move(self, moves: list[tuple[nn.Parameter, Tensor]], group: dict[str, Any], rate: float) -> None:
        updates = orthogonalised(torch.cat([direction for _, direction in moves]), group["ns_steps"], self.ns_dtype)
        for (parameter, _), update in zip(moves, torch.split(updates, group["blocks"]), strict=True):
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-rate)
