"""A slow, obvious twin of training with a recipe, to compare the fast ones with.

Float64 throughout, one parameter at a time, each formula as published. It shares no code with adamtune but the Recipe
it reads: rules, schedule, clipping, accumulation and optimizers are all written out again here.

    [Adam]  Kingma & Ba 2014, Algorithm 1
    [AdamW] Loshchilov & Hutter 2019, Algorithm 2
    [SGDR]  Loshchilov & Hutter 2017, equation 5
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from adamtune.recipe import GroupRule, Recipe, Schedule


def schedule_multiplier(schedule: Schedule, step: int, total: int) -> float:
    """eta_t for update `step`, counted from 0."""
    warmup = schedule.warmup
    rising = round(warmup * total) if isinstance(warmup, float) else min(warmup.steps, total)
    if step < rising:
        return step / rising
    top, bottom = 1.0, schedule.floor
    if schedule.kind == "cosine":  # [SGDR] eta_min + (eta_max - eta_min) (1 + cos(pi T_cur / T_i)) / 2
        return bottom + (top - bottom) * (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2
    if schedule.kind == "linear":
        return top + (bottom - top) * (step - rising) / (total - rising)
    if schedule.kind == "step":
        eta = top
        for milestone in schedule.milestones:
            if step / total >= milestone:
                eta *= schedule.gamma
        return max(eta, bottom)
    return top


@dataclass
class Settings:
    """What one parameter is trained with."""

    lr: float
    lr_mult: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float


def settings_for(recipe: Recipe, name: str, kind: str) -> Settings:
    """The recipe's values, overridden by the first rule that takes the parameter."""
    found = Settings(recipe.lr, 1.0, recipe.weight_decay, *recipe.betas, recipe.eps)
    for rule in recipe.groups:
        if takes(rule, name, kind):
            found.lr, found.lr_mult = recipe.lr * rule.lr_mult, rule.lr_mult
            if rule.weight_decay is not None:
                found.weight_decay = rule.weight_decay
            if rule.betas is not None:
                found.beta1, found.beta2 = rule.betas
            if rule.eps is not None:
                found.eps = rule.eps
            break
    return found


def takes(rule: GroupRule, name: str, kind: str) -> bool:
    if rule.match.kind is not None and kind not in rule.match.kind:
        return False
    return rule.match.params is None or any(fnmatchcase(name, pattern) for pattern in rule.match.params)


class Twin:
    """Trains `model` in place with `recipe`. `kind_of` tells each parameter's kind: written down, not detected."""

    def __init__(self, recipe: Recipe, model: nn.Module, kind_of: Mapping[str, str], total_steps: int) -> None:
        self.recipe = recipe
        self.total_steps = total_steps
        self.params = dict(model.named_parameters())
        assert all(param.dtype == torch.float64 for param in self.params.values())
        self.settings = {name: settings_for(recipe, name, kind_of[name]) for name in self.params}
        self.m = {name: torch.zeros_like(param) for name, param in self.params.items()}
        self.v = {name: torch.zeros_like(param) for name, param in self.params.items()}
        self.t = 0
        self.adams = total_steps
        """Updates that are Adam's, where the recipe is not SGD's from the start."""
        if recipe.switch is not None:
            self.adams = min(round(recipe.switch.at * total_steps), total_steps - 1)
            self.adams = max(self.adams, 1)

    def step(self, losses: Sequence[Tensor]) -> None:
        """One update from the mean gradient of `losses`, one loss for each micro-batch, clipped as the recipe says."""
        gradients = self._mean_gradient(losses)
        eta = schedule_multiplier(self.recipe.schedule, self.t, self.total_steps)
        if self.recipe.switch is not None and self.t == self.adams:  # SGD starts without any memory
            self.m = {name: torch.zeros_like(param) for name, param in self.params.items()}
        self.t += 1
        with torch.no_grad():
            for name, param in self.params.items():
                own = self.settings[name]
                if self.recipe.optimizer == "sgd":
                    self._sgd(name, param, gradients[name], own, eta * own.lr, self.recipe.momentum)
                elif self.recipe.switch is not None and self.t > self.adams:
                    lr = eta * own.lr_mult * self.recipe.switch.lr
                    self._sgd(name, param, gradients[name], own, lr, self.recipe.switch.momentum)
                else:
                    self._adam(name, param, gradients[name], own, eta)

    def _mean_gradient(self, losses: Sequence[Tensor]) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(param) for name, param in self.params.items()}
        for loss in losses:
            for name, gradient in zip(self.params, torch.autograd.grad(loss, list(self.params.values())), strict=True):
                total[name] += gradient
        mean = {name: gradient / len(losses) for name, gradient in total.items()}
        if self.recipe.clip_norm is not None:
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in mean.values()))
            shrink = min(1.0, self.recipe.clip_norm / (norm + 1e-6))  # torch's 1e-6
            mean = {name: gradient * shrink for name, gradient in mean.items()}
        return mean

    def _adam(self, name: str, param: Tensor, g: Tensor, own: Settings, eta: float) -> None:
        decoupled = self.recipe.optimizer == "adamw"
        if not decoupled:
            g = g + own.weight_decay * param  # [AdamW] line 6, the L2 form
        m = own.beta1 * self.m[name] + (1 - own.beta1) * g  # [Adam] m_t
        v = own.beta2 * self.v[name] + (1 - own.beta2) * g**2  # [Adam] v_t
        self.m[name], self.v[name] = m, v
        m_hat = m / (1 - own.beta1**self.t)  # [Adam] bias correction
        v_hat = v / (1 - own.beta2**self.t)
        change = m_hat / (v_hat.sqrt() + own.eps)
        if decoupled:
            # [AdamW] line 12 is eta (alpha m_hat / (sqrt(v_hat) + eps) + lambda theta); torch, and so we, take
            # lambda = lr * weight_decay.
            change = change + own.weight_decay * param
        param -= eta * own.lr * change

    def _sgd(self, name: str, param: Tensor, g: Tensor, own: Settings, lr: float, momentum: float) -> None:
        # torch's form of momentum: the buffer holds gradients, lr comes after.
        self.m[name] = momentum * self.m[name] + g + own.weight_decay * param
        param -= lr * self.m[name]
