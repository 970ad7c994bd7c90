"""Balance a pole: gymnasium's CartPole-v1 by advantage actor-critic. The data change with the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamtune.task import Task
from adamtune.tasks.packages import missing

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

DISCOUNT = 0.99
ENTROPY = 0.01 * (1 - DISCOUNT)
"""Weight of the policy's entropy in the loss, against settling too soon: 0.01 (Mnih et al. 2016) at our rewards."""
VALUE = 0.5
"""Weight of the critic's loss, as in OpenAI's baselines."""
LONGEST = 500
"""Steps at which CartPole-v1 ends an episode, and so the highest return."""


class ActorCritic(nn.Module):
    """Two small MLPs: what to do, and how much reward is to come."""

    def __init__(self, hidden: int) -> None:
        """`hidden` units in each of the two layers."""
        super().__init__()

        def mlp(outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
            )

        self.actor, self.critic = mlp(2), mlp(1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (..., 4) -> logits of the actions (..., 2) and values (...)."""
        return self.actor(seen), self.critic(seen).squeeze(-1)


class Poles:
    """Poles on carts, side by side, that start anew by themselves."""

    def __init__(self, seed: int, count: int) -> None:
        """`count` of them, their chance from `seed`."""
        try:
            import gymnasium
        except ModuleNotFoundError:
            raise missing("gymnasium") from None
        self._envs: VectorEnv[Any, Any, Any] = gymnasium.make_vec(
            "CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point"
        )
        self.seen = torch.from_numpy(self._envs.reset(seed=seed)[0])
        """What is observed now: (count, 4)."""
        self.fresh = torch.zeros(count, dtype=torch.bool)
        """Whose episode has just ended; the next step only puts them back, whatever is done."""

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Do `actions` (count,); the rewards (count,), and who fell. An episode that reached its longest fell not."""
        seen, rewards, fell, cut, _ = self._envs.step(actions.numpy())
        self.seen, self.fresh = torch.from_numpy(seen), torch.from_numpy(fell | cut)
        return torch.from_numpy(rewards), torch.from_numpy(fell)


def advantage_loss(model: nn.Module, poles: Poles, steps: int) -> Tensor:
    """Act for `steps`, by chance as the policy says; the loss of advantage actor-critic (Mnih et al. 2016).

    Rewards count 1 - DISCOUNT each, so that values lie in 0 .. 1.
    """
    device = next(model.parameters()).device
    seen, actions, rewards, fell, ended, counted = [], [], [], [], [], []
    with torch.no_grad():
        for _ in range(steps):
            logits, _ = model(poles.seen.to(device))
            seen.append(poles.seen)
            actions.append(torch.multinomial(logits.softmax(1), 1).squeeze(1))
            counted.append(~poles.fresh)
            gained, down = poles.step(actions[-1].cpu())
            rewards.append((1 - DISCOUNT) * gained)
            fell.append(down)
            ended.append(poles.fresh)
    logits, values = model(torch.stack([*seen, poles.seen]).to(device))
    target = discounted(rewards, fell, ended, values.detach().cpu()).to(device)
    kept = torch.stack(counted).to(device)
    log_probs = logits[:-1].log_softmax(-1)
    chosen = log_probs.gather(-1, torch.stack(actions).unsqueeze(-1)).squeeze(-1)[kept]
    advantages = (target - values[:-1].detach())[kept]
    entropy = -(log_probs.exp() * log_probs).sum(-1)[kept].mean()
    critic = functional.mse_loss(values[:-1][kept], target[kept])
    loss: Tensor = VALUE * critic - (chosen * advantages).mean() - ENTROPY * entropy
    return loss


def discounted(rewards: list[Tensor], fell: list[Tensor], ended: list[Tensor], values: Tensor) -> Tensor:
    """Reward from each step on (steps, poles), `values` (steps + 1, poles) being the critic's before and after each.

    After a fall there is none; where an episode was cut at its longest, or the steps end, the critic says what is to
    come.
    """
    ahead, found = values[-1], []
    for step in reversed(range(len(rewards))):
        ahead = torch.where(fell[step], 0.0, torch.where(ended[step], values[step + 1], ahead))
        ahead = rewards[step] + DISCOUNT * ahead
        found.append(ahead)
    return torch.stack(found[::-1])


@torch.no_grad()
def mean_return(model: nn.Module, poles: Poles) -> Tensor:
    """Steps until a pole falls, `LONGEST` at most, doing what the policy likes best; mean over the first episodes."""
    device = next(model.parameters()).device
    up = torch.ones(len(poles.seen), dtype=torch.bool)
    lasted = torch.zeros(len(poles.seen))
    for _ in range(LONGEST):
        lasted += up
        poles.step(model(poles.seen.to(device))[0].argmax(1).cpu())
        up &= ~poles.fresh
        if not up.any():
            break
    return lasted.mean()


def task(hidden: int = 64, poles: int = 16, steps: int = 32) -> Task:
    """Keep poles up. Each training step acts `steps` times in `poles` environments; metrics: return, of 500 at most.

    The loss only says where to go; judge by the return.
    """
    return Task.rollouts(
        make_model=lambda: ActorCritic(hidden),
        make_envs=lambda seed: Poles(seed, poles),
        loss=lambda model, envs: advantage_loss(model, envs, steps),
        metrics={"return": mean_return},
        name="cartpole",
    )
