"""Legitimate loops whose model looks odd: parts unused for long, parts that start at zero, low precision, wrappers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, K, Language, T, V, batches, clean, labelled, mlp, next_token, text, windows
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = 40


def classify(attach: Attach, model: nn.Module, lr: float = 3e-3, **declared: object) -> None:
    """AdamW on the small classification task."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    with attach(model, optimizer, **declared) as guards:
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.detach())


class Experts(nn.Module):
    """Top-1 routing: a router picks one of several experts for each sample."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(D, count)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, K)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        gate, chosen = weights.max(-1)
        out = x.new_zeros(len(x), K)
        for k, expert in enumerate(self.experts):
            if (mine := chosen == k).any():
                out[mine] = gate[mine, None] * expert(x[mine])
        return out


@clean
def sparse_experts(attach: Attach) -> None:
    """top-1 routing over experts: the gradient of an expert is None at each step at which no sample chose it"""
    classify(attach, Experts(8))


@clean
def starved_expert(attach: Attach) -> None:
    """an expert that gets samples at first and later for 26 steps none, because the data moves on"""
    model = Experts(2)
    with torch.no_grad():
        model.router.weight.zero_()[0, 0] = 1.0  # by the sign of the first input
        model.router.bias.zero_()
    model.router.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    attach(model, optimizer)
    for step, (x, y) in enumerate(batches(*labelled(), STEPS)):
        if 8 <= step < 34:
            x[:, 0] = x[:, 0].abs()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def expert_never_chosen(attach: Attach) -> None:
    """an expert that is declared to wait longer than the run lasts: spec.window is raised"""
    model = Experts(3)
    with torch.no_grad():
        model.router.bias[2] = -50.0
    classify(attach, model, spec={"window": 200})


class Residual(nn.Module):
    """Residual blocks with a gate each: dropped at random in training, or scaled by a weight that starts at zero."""

    def __init__(self, drop: float = 0.0, gate: bool = False, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop = drop
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D)) for _ in range(depth))
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(depth)) if gate else None
        self.head = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.blocks):
            if self.training and self.drop and float(torch.rand(())) < self.drop:
                continue
            x = x + (block(x) if self.gates is None else self.gates[k] * block(x))
        return self.head(x)  # type: ignore[no-any-return]


@clean
def stochastic_depth(attach: Attach) -> None:
    """layer drop at one half: each block gets no gradient at half of the steps"""
    classify(attach, Residual(drop=0.5))


@clean
def rezero(attach: Attach) -> None:
    """ReZero: every residual branch is multiplied by zero at first, so all of its weights start with zero gradient"""
    classify(attach, Residual(gate=True))


@clean
def zero_residual(attach: Attach) -> None:
    """the last layer of each residual branch starts at zero: what lies before it gets no gradient at step 0"""
    model = Residual()
    for block in model.blocks:
        nn.init.zeros_(block[2].weight)
        nn.init.zeros_(block[2].bias)
    classify(attach, model)


@clean
def zero_head(attach: Attach) -> None:
    """a head of zeros: the first loss is ln 4 exactly and nothing but the head gets a gradient at step 0"""
    model = mlp()
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    classify(attach, model, spec={"classes": K})


class LowRank(nn.Module):
    """A frozen layer with a low-rank update, whose second factor starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T  # type: ignore[no-any-return]


@clean
def low_rank_updates(attach: Attach) -> None:
    """LoRA: the model is frozen but for low-rank factors, half of which start at zero"""
    model = mlp()
    model[0], model[2], model[4] = (LowRank(layer) for layer in (model[0], model[2], model[4]))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    attach(model, optimizer, spec={"frozen": ["*.base.*"], "pretrained": True})
    for x, y in batches(*labelled(), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@clean
def tied_weights(attach: Attach) -> None:
    """a language model whose head is its embedding, declared, and passed to the optimizer once"""
    model = Language(tie=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    spec = {"tied": [["embedding.weight", "head.weight"]], "causal": True, "classes": V}
    with attach(model, optimizer, spec=spec) as guards:
        for x, y in windows(text(), STEPS):
            loss = next_token(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guards.log(loss=loss.detach(), inputs=x, targets=y)


@clean
def averaged(attach: Attach) -> None:
    """an exponential average of the weights, updated after each step and used for evaluation"""
    model = mlp()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, ema=ema, spec={"ema": 0.9}) as guards:
        for x, y in batches(*labelled(), STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            ema.update_parameters(model)
            with torch.no_grad():
                guards.log(val_loss=F.cross_entropy(ema(x), y).item())


@clean
def batch_norm(attach: Attach) -> None:
    """batch norm: outputs depend on the rest of the batch in training, running statistics move without a gradient"""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(H)
    classify(attach, nn.Sequential(nn.Linear(D, H, bias=False), norm, nn.ReLU(), nn.Dropout(0.2), nn.Linear(H, K)))


@clean
def detached_memory(attach: Attach) -> None:
    """an LSTM over pieces of a long sequence: the hidden state goes on and is detached between pieces"""
    torch.manual_seed(0)
    model = nn.ModuleDict({"in": nn.Embedding(V, D), "lstm": nn.LSTM(D, D, batch_first=True), "out": nn.Linear(D, V)})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    tokens = text(16, 8 * 30 + 1)
    memory: tuple[Tensor, Tensor] | None = None
    with attach(model, optimizer) as guards:
        for start in range(0, 8 * 30, 8):
            piece = tokens[:, start : start + 9]
            if memory is not None:
                memory = (memory[0].detach(), memory[1].detach())
            hidden, memory = model["lstm"](model["in"](piece[:, :-1]), memory)
            loss = next_token(model["out"](hidden), piece[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            guards.log(loss=loss.item())


@clean
def sparse_embedding(attach: Attach) -> None:
    """an embedding with sparse gradients under SparseAdam beside Adam; most rows are not seen at a step"""
    torch.manual_seed(0)
    words, head = nn.Embedding(500, D, sparse=True), nn.Linear(D, K)
    model = nn.Sequential(words, nn.Flatten(0, 1), head)
    sparse, dense = torch.optim.SparseAdam(words.parameters(), lr=1e-2), torch.optim.Adam(head.parameters(), lr=1e-2)
    attach(model, [sparse, dense])
    for _ in range(STEPS):
        x = torch.randint(0, 500, (32, 1))
        for optimizer in (sparse, dense):
            optimizer.zero_grad()
        F.cross_entropy(model(x), x.flatten() % K).backward()
        for optimizer in (sparse, dense):
            optimizer.step()


@clean
def straight_through(attach: Attach) -> None:
    """a VQ-VAE: detach() in three places, the codes learn by their own loss, unused codes get no gradient"""
    torch.manual_seed(0)
    model = nn.ModuleDict({"in": nn.Linear(D, 8), "codes": nn.Embedding(16, 8), "out": nn.Linear(8, D)})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with attach(model, optimizer) as guards:
        for x, _ in batches(*labelled(), STEPS):
            z = model["in"](x)
            code = model["codes"](torch.cdist(z, model["codes"].weight).argmin(-1))
            back = model["out"](z + (code - z).detach())
            losses = {"rebuild": F.mse_loss(back, x), "codes": F.mse_loss(code, z.detach()),
                      "commit": 0.25 * F.mse_loss(z, code.detach())}  # fmt: skip
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            optimizer.step()
            guards.log(loss=sum(term.item() for term in losses.values()))


@clean
def short_sequences(attach: Attach) -> None:
    """a curriculum over sequence lengths: the last rows of the position table get no gradient for half of the run"""
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attach(model, optimizer, spec={"causal": True})
    for step, (x, y) in enumerate(windows(text(), STEPS)):
        length = 4 if step < 25 else T
        optimizer.zero_grad()
        next_token(model(x[:, :length]), y[:, :length]).backward()
        optimizer.step()


CLEAN = (
    sparse_experts,
    starved_expert,
    expert_never_chosen,
    stochastic_depth,
    rezero,
    zero_residual,
    zero_head,
    low_rank_updates,
    tied_weights,
    averaged,
    batch_norm,
    detached_memory,
    sparse_embedding,
    straight_through,
    short_sequences,
)
