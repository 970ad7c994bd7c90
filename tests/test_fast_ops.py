"""What the quicker operations of a stack are quicker by, seen below it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from adamtune.population import short_attention
from adamtune.population.fast_ops import FastOps

COUNT = 3


class Layouts(TorchDispatchMode):
    """Takes down how what the backward pass of an activation reads is laid out: gradient, and what was saved."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.threshold_backward.default:
            self.seen.append([arg.stride() for arg in args if isinstance(arg, Tensor)])
        return func(*args, **(kwargs or {}))


def weights(*shape: int) -> Tensor:
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduce", [lambda x: x.flatten(1), lambda x: x.mean((2, 3)), lambda x: x.permute(0, 2, 3, 1)])
def test_the_gradient_of_an_activation_lies_as_the_activation(reduce: Any, inplace: bool) -> None:
    first, second, images = weights(4, 2, 3, 3), weights(4, 4, 3, 3), torch.randn(5, 2, 8, 8)

    def one(first: Tensor, second: Tensor) -> Tensor:
        with FastOps(COUNT, noisy=False):
            hidden = functional.relu(functional.conv2d(images, first), inplace=inplace)
            out: Tensor = reduce(functional.relu(functional.conv2d(hidden, second), inplace=inplace))
            return out.reshape(5, -1).square().sum()

    losses = torch.vmap(one)(first, second)
    with Layouts() as layouts:
        losses.sum().backward()
    assert len(layouts.seen) == 2
    assert all(gradient == saved for gradient, saved in layouts.seen)


def test_attention_within_torchs_multi_head_attention_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def is_short(query: Tensor, *others: Tensor) -> bool:
        asked.append(len(query))
        return False

    monkeypatch.setattr(short_attention, "is_short", is_short)
    layer, tokens = nn.MultiheadAttention(6, 2, batch_first=True), torch.randn(5, 4, 6)
    own = {name: torch.stack([param.detach()] * COUNT) for name, param in layer.named_parameters()}

    def one(own: dict[str, Tensor]) -> Tensor:
        with FastOps(COUNT, noisy=False):
            out: Tensor = torch.func.functional_call(layer, own, (tokens, tokens, tokens), {"need_weights": False})[0]
            return out

    found = torch.vmap(one)(own)
    assert asked == [COUNT * 5]
    torch.testing.assert_close(found, layer(tokens, tokens, tokens)[0].detach().expand(COUNT, -1, -1, -1))


MODULES: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(4, 3), torch.ones(5, 4)),
    "linear of sequences": (nn.Linear(4, 3), torch.ones(5, 6, 4)),
    "linear without bias": (nn.Linear(4, 3, bias=False), torch.ones(5, 4)),
    "convolution of one dimension": (nn.Conv1d(4, 3, 3), torch.ones(5, 4, 8)),
    "of two": (nn.Conv2d(4, 3, 3), torch.ones(5, 4, 8, 8)),
    "of the same size": (nn.Conv2d(4, 3, 3, padding="same"), torch.ones(5, 4, 8, 8)),
    "of three": (nn.Conv3d(4, 3, 3), torch.ones(5, 4, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 3, 3), torch.ones(5, 4, 8, 8)),
    "layer norm": (nn.LayerNorm(4), torch.ones(5, 4)),
    "group norm": (nn.GroupNorm(2, 4), torch.ones(5, 4, 8, 8)),
    "batch norm": (nn.BatchNorm2d(4), torch.ones(5, 4, 8, 8)),
    "batch norm of vectors": (nn.BatchNorm1d(4), torch.ones(5, 4)),
    "embedding": (nn.Embedding(4, 3), torch.ones(5, dtype=torch.long)),
}


@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_under_autocast_an_activation_has_the_type_it_has_alone(name: str, of: torch.dtype) -> None:
    module, x = MODULES[name]
    x = x.to(of) if x.is_floating_point() else x
    members = {name: torch.stack([part] * COUNT) for name, part in module.state_dict().items()}
    found: list[torch.dtype] = []

    def one(own: dict[str, Tensor]) -> Tensor:
        with FastOps(COUNT, noisy=False):
            out: Tensor = torch.func.functional_call(module, own, (x,))
        found.append(out.dtype)
        return out

    with torch.autocast("cpu", torch.bfloat16):
        alone = module(x)
        out = torch.vmap(one)(members)
    assert found == [alone.dtype]
    torch.testing.assert_close(out[0], alone, rtol=0.02, atol=0.02)
