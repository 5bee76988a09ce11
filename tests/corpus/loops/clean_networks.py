"""Legitimate loops with several networks: players that alternate, targets that follow, teachers."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from corpus.loops.case import Attach
from corpus.loops.materials import D, H, batches, clean, labelled, mlp
from torch import Tensor, nn

STEPS = 40


@clean
def alternating(attach: Attach) -> None:
    """a GAN: the generator's backward leaves gradients in the discriminator, zeroed before its own backward only"""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, H), nn.ReLU(), nn.Linear(H, D))
    judge = nn.Sequential(nn.Linear(D, H), nn.LeakyReLU(0.2), nn.Linear(H, 1))
    of_generator = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    of_judge = torch.optim.Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.999))
    with attach({"generator": generator, "judge": judge}, [of_generator, of_judge]) as guards:
        for real, _ in batches(*labelled(), STEPS):
            fake = generator(torch.randn(len(real), 8))
            of_judge.zero_grad()
            loss_d = F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()
            loss_d.backward()
            of_judge.step()
            of_generator.zero_grad()
            loss_g = F.softplus(-judge(fake)).mean()
            loss_g.backward()
            of_generator.step()
            guards.log(losses={"judge": loss_d.item(), "generator": loss_g.item()})


@clean
def several_judge_steps(attach: Attach) -> None:
    """a critic with clamped weights that takes three steps to each of the generator's (WGAN)"""
    torch.manual_seed(0)
    generator, critic = nn.Sequential(nn.Linear(8, H), nn.ReLU(), nn.Linear(H, D)), mlp(out=1)
    of_generator = torch.optim.RMSprop(generator.parameters(), lr=1e-4)
    of_critic = torch.optim.RMSprop(critic.parameters(), lr=1e-4)
    attach([generator, critic], [of_generator, of_critic])
    for index, (real, _) in enumerate(batches(*labelled(), 60)):
        of_critic.zero_grad()
        with torch.no_grad():
            fake = generator(torch.randn(len(real), 8))
        (critic(fake).mean() - critic(real).mean()).backward()
        of_critic.step()
        for parameter in critic.parameters():
            parameter.data.clamp_(-0.05, 0.05)
        if index % 3 == 2:
            of_generator.zero_grad()
            (-critic(generator(torch.randn(len(real), 8))).mean()).backward()
            of_generator.step()


@clean
def target_network(attach: Attach) -> None:
    """BYOL: an online network learns to predict a target network, which follows by a polyak average without gradient"""
    online, predictor = mlp(out=8), nn.Linear(8, 8)
    target = copy.deepcopy(online).requires_grad_(False)
    model = nn.ModuleDict({"online": online, "predictor": predictor, "target": target})
    optimizer = torch.optim.Adam([*online.parameters(), *predictor.parameters()], lr=3e-3)
    attach(model, optimizer)
    for x, _ in batches(*labelled(), STEPS):
        a, b = x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)
        loss = -F.cosine_similarity(predictor(online(a)), target(b).detach()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, 0.01)


@clean
def policy_gradient(attach: Attach) -> None:
    """reinforcement learning: the advantage is detached, the loss is negative and rises and falls as it likes"""
    policy, value = mlp(), mlp(seed=1, out=1)
    model = nn.ModuleDict({"policy": policy, "value": value})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with attach(model, optimizer) as guards:
        for x, y in batches(*labelled(), STEPS):
            chosen = torch.distributions.Categorical(logits=policy(x))
            action = chosen.sample()
            reward = (action == y).float()
            expected = value(x).squeeze(1)
            advantage = (reward - expected).detach()
            losses: dict[str, Tensor] = {
                "policy": -(chosen.log_prob(action) * advantage).mean(),
                "value": F.mse_loss(expected, reward),
                "entropy": -0.01 * chosen.entropy().mean(),
            }
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            optimizer.step()
            guards.log(losses={name: term.detach() for name, term in losses.items()})


CLEAN = (
    alternating,
    several_judge_steps,
    target_network,
    policy_gradient,
)
