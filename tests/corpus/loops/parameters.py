"""Which parameters the optimizer holds, which move, which must not, and which decay."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .blocks import CLASSES, HIDDEN, WIDTH, Classifier, Tokens, adam, blobs, fit, next_token, text, validate
from .case import Attach, Case

STEPS = 40


def head_replaced_late(attach: Attach, buggy: bool) -> None:
    """Transfer learning: a new head for the new classes, put in after the optimizer took the parameters."""
    model = Classifier()
    optimizer = adam(model)
    if buggy:
        model.head = nn.Linear(HIDDEN, CLASSES)
    else:
        model.head = nn.Linear(HIDDEN, CLASSES)
        optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def parametrized_late(attach: Attach, buggy: bool) -> None:
    """Weight norm splits a weight into two new parameters; the optimizer goes on holding the one that was."""
    model = Classifier()
    early = adam(model)
    parametrizations.weight_norm(model.body[0])
    optimizer = early if buggy else adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def prepared_copy(attach: Attach, buggy: bool) -> None:
    """A `prepare` that returns a converted copy of the model: the loop trains the copy, the optimizer the original."""
    model = Classifier()
    early = adam(model)
    prepared = copy.deepcopy(model)
    optimizer = early if buggy else adam(prepared)
    with attach(prepared, optimizer):
        fit(prepared, optimizer, blobs(STEPS))


def loaded_with_assign(attach: Attach, buggy: bool) -> None:
    """load_state_dict(assign=True) replaces every parameter, after the optimizer was built."""
    model, pretrained = Classifier(), Classifier(seed=1)
    optimizer = adam(model)
    saved = {name: value.clone() for name, value in pretrained.state_dict().items()}
    model.load_state_dict(saved, assign=buggy)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def second_task(attach: Attach, buggy: bool) -> None:
    """At the second task, after 20 steps, the model gets a new head, of which nobody tells the optimizer."""
    model = Classifier()
    optimizer = torch.optim.SGD([{"params": list(model.body.parameters())}, {"params": list(model.head.parameters())}],
                                lr=0.1)  # fmt: skip
    with attach(model, optimizer):
        fit(model, optimizer, blobs(20))
        model.head = nn.Linear(HIDDEN, CLASSES)
        if not buggy:
            optimizer.param_groups[1]["params"] = list(model.head.parameters())
        fit(model, optimizer, [(x, (y + 1) % CLASSES) for x, y in blobs(20, seed=1500)])


def only_frozen(attach: Attach, buggy: bool) -> None:
    """The condition is the wrong way round: the head is frozen, the optimizer has only the head. The statistics of
    the batch norm drift, so the validation loss moves all the same."""
    model = Classifier(norm=nn.BatchNorm1d(HIDDEN))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head") != buggy
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def given_twice(attach: Attach, buggy: bool) -> None:
    """The head is added to a list that has it already; torch only warns, and every step moves it twice."""
    model = Classifier()
    extra = list(model.head.parameters()) if buggy else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = torch.optim.SGD([*model.parameters(), *extra], lr=0.05)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def two_optimizers(attach: Attach, buggy: bool) -> None:
    """A second optimizer for the head, while the first has the whole model."""
    model = Classifier()
    first = torch.optim.SGD((model if buggy else model.body).parameters(), lr=0.05)
    second = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with attach(model, [first, second]):
        for x, y in blobs(STEPS):
            first.zero_grad()
            second.zero_grad()
            F.cross_entropy(model(x), y).backward()
            first.step()
            second.step()


class Stack(nn.Module):
    """Layers kept in a Python list are used, and are no part of the module."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)]
        self.layers = layers if plain else nn.ModuleList(layers)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def plain_list(attach: Attach, buggy: bool) -> None:
    model = Stack(plain=buggy)
    optimizer = adam(model)
    with attach(model, optimizer):
        fit(model, optimizer, blobs(STEPS))


def in_no_group(attach: Attach, buggy: bool) -> None:
    """Two groups by the name of the parameter, and a parameter that neither condition matches."""
    model = Tokens()
    named = list(model.named_parameters())
    weights = [p for name, p in named if name.endswith("weight")]
    rest = [p for name, p in named if name.endswith("bias") or (not buggy and name == "place")]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    with attach(model, optimizer):
        fit(model, optimizer, text(STEPS), next_token)


def initialised_again(attach: Attach, buggy: bool) -> None:
    """The function that prepares a validation also runs the initialisation of the head, every ten steps."""
    model, held_out = Classifier(), blobs(1, seed=9000)[0]
    optimizer = adam(model)

    def prepare_validation() -> None:
        if buggy:
            model.head.reset_parameters()
        model.eval()

    with attach(model, optimizer):
        for step, batch in enumerate(blobs(STEPS)):
            fit(model, optimizer, [batch])
            if step % 10 == 9:
                prepare_validation()
                validate(model, held_out)
                model.train()


def frozen_with_momentum(attach: Attach, buggy: bool) -> None:
    """Frozen after 20 steps, with gradients that are zero and not None: momentum and decay go on moving it."""
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    with attach(model, optimizer):
        for step, (x, y) in enumerate(blobs(STEPS)):
            if step == 20:
                for parameter in model.body.parameters():
                    parameter.requires_grad_(False)
                    if not buggy:
                        parameter.grad = None
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def frozen_by_the_wrong_name(attach: Attach, buggy: bool) -> None:
    """The loop that freezes asks for a prefix that no parameter has."""
    model = Tokens()
    prefix = "embed." if buggy else "embedding."
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            parameter.requires_grad_(False)
    optimizer = adam(model)
    with attach(model, optimizer, spec={"frozen": ["embedding.*"]}):
        fit(model, optimizer, text(STEPS), next_token)


def frozen_statistics_drift(attach: Attach, buggy: bool) -> None:
    """A frozen backbone left in training mode: its batch norm forgets the statistics it was trained with."""
    model = Classifier(norm=nn.BatchNorm1d(HIDDEN))
    model.body.requires_grad_(False)
    optimizer = adam(model.head)
    model.train()
    if not buggy:
        model.body.eval()
    with attach(model, optimizer, spec={"frozen": ["body.*"]}):
        fit(model, optimizer, blobs(STEPS))


def decay_on_norms(attach: Attach, buggy: bool) -> None:
    """The list of what does not decay is another model's: no parameter here has LayerNorm in its name."""
    model = Tokens()
    spared = ["bias", "LayerNorm.weight"] if buggy else ["bias", "norm.weight"]
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not any(s in n for s in spared)], "weight_decay": 0.1},
        {"params": [p for n, p in named if any(s in n for s in spared)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    with attach(model, optimizer, spec={"no_decay": ["*.bias", "norm.weight"]}):
        fit(model, optimizer, text(STEPS), next_token)


def decay_missing(attach: Attach, buggy: bool) -> None:
    """Groups with their decay are built, and then flattened when the optimizer was exchanged."""
    model = Tokens()
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n.endswith(("qkv.weight", "out.weight"))], "weight_decay": 0.1},
        {"params": [p for n, p in named if not n.endswith(("qkv.weight", "out.weight"))], "weight_decay": 0.0},
    ]
    given = [p for group in groups for p in group["params"]] if buggy else groups
    optimizer = torch.optim.AdamW(given, lr=1e-2, weight_decay=0.0)
    with attach(model, optimizer, spec={"decay": ["qkv.weight", "out.weight"]}):
        fit(model, optimizer, text(STEPS), next_token)


HELD = frozenset({"optimizer-parameters"})
CASES: tuple[Case, ...] = (
    Case("head-replaced-late", "the head is replaced after the optimizer was built", HELD, 0, head_replaced_late,
         "pytorch#14467"),
    Case("parametrized-late", "weight norm is applied after the optimizer was built", HELD, 0, parametrized_late),
    Case("prepared-copy", "the model that trains is a copy of the one that the optimizer holds", HELD, 0,
         prepared_copy, "TrainCheck AC-2665"),
    Case("loaded-with-assign", "load_state_dict(assign=True) after the optimizer was built", HELD, 0,
         loaded_with_assign),
    Case("second-task", "a new head in the middle of the run, not given to the optimizer", HELD, 20, second_task),
    Case("only-frozen", "the optimizer holds nothing but frozen parameters", HELD | {"parameter-moves"}, 0,
         only_frozen, "TrainCheck PT-Forum-84911"),
    Case("given-twice", "some parameters are given to the optimizer twice", HELD, 0, given_twice),
    Case("two-optimizers", "two optimizers move the same head", HELD, 0, two_optimizers),
    Case("plain-list", "layers in a Python list, unknown to parameters()", HELD, 0, plain_list),
    Case("parameter-in-no-group", "no group matches the positions", HELD, 0, in_no_group),
    Case("initialised-again", "each validation initialises the head again", frozenset({"parameter-moves"}), 10,
         initialised_again, "TrainCheck TF-17877"),
    Case("frozen-with-momentum", "frozen with zero gradients, momentum moves it", frozenset({"frozen"}), 20,
         frozen_with_momentum),
    Case("frozen-by-the-wrong-name", "freezing matches no name", frozenset({"frozen"}), 0,
         frozen_by_the_wrong_name, needs="frozen: the embedding"),
    Case("frozen-statistics-drift", "the statistics of a frozen backbone drift", frozenset({"frozen", "buffers"}), 0,
         frozen_statistics_drift, "TrainCheck MM-702", "frozen: the backbone, parameters and buffers"),
    Case("decay-on-norms", "norms decay though declared not to", frozenset({"weight-decay"}), 0, decay_on_norms,
         needs="no_decay: biases and norms"),
    Case("decay-missing", "what should decay does not", frozenset({"weight-decay"}), 0, decay_missing,
         needs="decay: the matrices of attention"),
)  # fmt: skip
