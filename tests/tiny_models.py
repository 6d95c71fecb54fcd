"""Models small enough to know their right mask by hand, and what they must not lose."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Blocks(nn.Module):
    """Class c is the mean of the c-th half, quadrant or octant, in reading order.

    (K, C, *S) -> (K, 2 ** axes). The right mask for class c lies in the c-th block. The
    scores are as large as the area loss, so that few steps find it.
    """

    def __init__(self, axes: int = 2, scale: float = 300.0):
        super().__init__()
        pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        self.pool = pools[axes - 1](2)
        self.weight = nn.Parameter(torch.full((2**axes,), scale))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.pool(inputs).mean(dim=1).flatten(1) * self.weight


class TwoInputs(nn.Module):
    """The sum of the scores of two inputs of any sizes, each by its own blocks."""

    def __init__(self, axes: tuple[int, int] = (2, 2)):
        super().__init__()
        self.first, self.second = Blocks(axes[0]), Blocks(axes[1])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.first(first)[:, :2] + self.second(second)[:, :2]


class Either(nn.Module):
    """One block is enough: the greater of the first and 0.9 times the last, (K,)."""

    def __init__(self):
        super().__init__()
        self.blocks = Blocks()

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.blocks(inputs)
        return torch.maximum(scores[:, 0], 0.9 * scores[:, 3])


class ConvNet(nn.Module):
    """A convolution, BatchNorm, dropout and a linear layer: (K, C, H, W) -> (K, 3)."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.conv(inputs)))
        return self.linear(self.drop(hidden.mean(dim=(2, 3))))


class NoModel(nn.Module):
    """Fails at forward number ``at``, counted from 0; before that it is `Blocks`."""

    def __init__(self, at: int = 0, error: type[BaseException] = ZeroDivisionError):
        super().__init__()
        self.blocks = Blocks()
        self.at, self.error = at, error
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.at:
            raise self.error("the model is out of order")
        return self.blocks(inputs)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def _content(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """Values, bit for bit, and all that a caller could see change."""
    if tensor is None:
        return None
    values = tensor.detach().cpu().contiguous().numpy().tobytes()
    return (
        values, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device,
        tensor.requires_grad, _content(tensor.grad) if tensor.is_leaf else None,
    )  # fmt: skip


def traces(model: object, *tensors: Tensor) -> dict[str, Any]:
    """Everything that a call must leave as it was: compare two of these."""
    found: dict[str, Any] = {
        "torch's generator": bytes(torch.get_rng_state().tolist()),
        "python's generator": hash(random.getstate()),
        "numpy's generator": str(np.random.get_state()),  # noqa: NPY002
        "grad enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "tensors": [_content(tensor) for tensor in tensors],
    }
    if isinstance(model, nn.Module):
        found["parameters"] = [_content(p) for p in model.parameters()]
        found["buffers"] = [_content(b) for b in model.buffers()]
        found["training"] = [m.training for m in model.modules()]
        found["hooks"] = [
            [len(getattr(m, hooks, ())) for hooks in _HOOKS] for m in model.modules()
        ]
        found["attributes"] = [sorted(vars(m)) for m in model.modules()]
    return found


def share_inside(mask: Tensor, block: int) -> float:
    """Share of a binarised mask (*S) that lies in the block, in reading order."""
    inside = torch.zeros(mask.shape, dtype=torch.bool)
    bits = [(block >> axis) & 1 for axis in reversed(range(mask.dim()))]
    inside[
        tuple(
            slice(size // 2, None) if bit else slice(None, (size + 1) // 2)
            for bit, size in zip(bits, mask.shape, strict=True)
        )
    ] = True
    kept = mask.cpu() >= 0.5
    return float((kept & inside).sum() / kept.sum())


def constant(shape: tuple[int, ...] = (1, 3, 12, 12)) -> Tensor:
    """Inputs that are 1 everywhere: under a fade, a mask is what the model sees."""
    return torch.ones(shape)


def varied(shape: tuple[int, ...] = (1, 3, 12, 12)) -> Tensor:
    """Inputs in [0.5, 1], the same in every test."""
    generator = torch.Generator().manual_seed(7)
    return 0.5 + 0.5 * torch.rand(shape, generator=generator)


class Weighted(nn.Module):
    """Class c is the weighted sum of the mean of each channel: (K, C, ...) -> (K, 2).

    ``channels`` hands its input on; the channels that a class needs are those with the
    highest product of weight and mean.
    """

    def __init__(self, weights: list[list[float]]):
        super().__init__()
        self.channels = nn.Identity()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.channels(inputs)
        return maps.flatten(2).mean(dim=2) @ self.weights.T


class Pair(nn.Module):
    """Two channels are worth much together, nothing alone: 10 a_0 a_1 + a_2, (K,)."""

    def __init__(self):
        super().__init__()
        self.channels = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        a = self.channels(inputs).flatten(2).mean(dim=2)
        return 10 * a[:, 0] * a[:, 1] + a[:, 2] + 0.1 * a[:, 3:].sum(dim=1)


class Spare(nn.Module):
    """Either of two channels will do, a third adds something: max(a_0, a_1) + 0.6 a_2.

    Alone, one of the two and the third are worth most; to bring the score down, both of
    the two have to go.
    """

    def __init__(self):
        super().__init__()
        self.channels = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        a = self.channels(inputs).flatten(2).mean(dim=2)
        return torch.maximum(a[:, 0], 0.9 * a[:, 1]) + 0.6 * a[:, 2]


def compiled(model: nn.Module, way: str) -> Any:
    """The model behind torch.compile, in one of the ways that people have."""
    if way == "in place":
        model.compile(backend="eager")
        return model
    if way == "function":
        return torch.compile(lambda x: model(x), backend="eager")
    fast = torch.compile(model, backend="eager")
    return nn.Sequential(fast) if way == "part" else fast
