"""`LayerSite`: masks over the channels of a layer, or over its places.

The layer's activation (N, ..., K, ...) is read once. Of channels, everything else are
the "colours" of a position: (N, rest, K). Of places, the channels are: (N, K, *places).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_extremal._base import checks
from captum_extremal._base.layer import Layer
from captum_extremal.sites.site import check_masks, fractions_of
from captum_extremal.solvers import LevelSetSolver, Solver, SwapSolver
from captum_extremal.solvers.problem import Masks

Baselines = float | Tensor | tuple[float | Tensor, ...]
_CHANNELS_LAST = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}
Positions = Literal["channels", "places"]


class LayerSite:
    """Masks over what a layer takes in or gives out.

    Args:
        layer: The reader, which passes the perturbed values on.
        given: The inputs of the model.
        activations: What was read, a tensor or several, (N, ...).
        dim: The dimension of the channels, from 1.
        positions: What has a value of its own in a mask.
        baselines: What positions become that are left out.

    Attributes:
        activations: As given.
        dim: As given.
        levels: The baseline and the activation, positions last, (N, 2, C, *S).

    Raises:
        TypeError: If a baseline is neither a number nor a tensor.
        ValueError: If a baseline does not fit, or there are no places.
    """

    spread = None

    def __init__(
        self,
        layer: Layer,
        given: tuple[Tensor, ...],
        activations: tuple[Tensor, ...],
        dim: int,
        positions: Positions,
        baselines: Baselines,
    ) -> None:
        self._layer = layer
        self._given = given
        self.activations = activations
        self.dim = dim
        self._positions = positions
        for activation in activations:
            places = activation.dim() - 2
            if positions == "places" and not 1 <= places <= 3:
                raise ValueError(
                    "layer must give channels at 1, 2 or 3 axes of places, got an "
                    f"activation of shape {tuple(activation.shape)} with its channels "
                    f"in dimension {dim}"
                )
        self.levels = tuple(
            self._levels(activation, baseline)
            for activation, baseline in zip(
                activations, _baselines(baselines, activations), strict=True
            )
        )

    @property
    def solver(self) -> Solver:
        """Channels are free, and tokens: an axis of places before the channels."""
        tokens = all(each.dim() == 3 and self.dim == 2 for each in self.activations)
        is_free = self._positions == "channels" or tokens
        return SwapSolver() if is_free else LevelSetSolver()

    def _levels(self, activation: Tensor, baseline: float | Tensor) -> Tensor:
        both = torch.stack([_left_out(baseline, activation), activation], dim=1)
        if self._positions == "places":
            return both.movedim(self.dim + 1, 2)
        both = both.movedim(self.dim + 1, -1)
        return both.flatten(2, -2) if both.dim() > 3 else both.unsqueeze(2)

    def fractions(self, areas: Sequence[int | float]) -> tuple[float, ...]:
        """Areas as fractions of the channels or places."""
        sizes = [level.shape[3:].numel() for level in self.levels]
        return fractions_of(areas, sizes, self._positions, "the layer's")

    def inputs(
        self, perturbed: tuple[Tensor, ...], images: Tensor
    ) -> tuple[Tensor, ...]:
        """The model's own inputs; the layer is told what to pass on."""
        self._layer.values = tuple(
            self._as_activation(values, activation)
            for values, activation in zip(perturbed, self.activations, strict=True)
        )
        images = images.to(self._given[0].device)
        return tuple(tensor[images] for tensor in self._given)

    def _as_activation(self, values: Tensor, activation: Tensor) -> Tensor:
        """Masked rows, (M, rest, K) or (M, K, *places), as the layer has them."""
        if self._positions == "places":
            masked = values.movedim(1, self.dim)
        else:
            rest = activation.movedim(self.dim, -1).shape[1:-1]
            masked = values.reshape(len(values), *rest, values.shape[2])
            masked = masked.movedim(-1, self.dim)
        # The model behind the layer may take a view that needs this order of memory.
        for order in (torch.contiguous_format, *_CHANNELS_LAST.get(masked.dim(), ())):
            if activation.is_contiguous(memory_format=order):
                return masked.contiguous(memory_format=order)
        return masked

    def laid(self, masks: Masks) -> tuple[Tensor, ...]:
        """(N, A, K) over channels, (N, A, 1, *places) over places."""
        if self._positions == "places":
            return masks
        return tuple(mask.squeeze(2) for mask in masks)

    def read(self, masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Masks in the form of `laid`, as a solver would give them."""
        one = [1] if self._positions == "places" else []
        shapes = [(*one, *level.shape[3:]) for level in self.levels]
        check_masks(masks, len(self.levels[0]), shapes, "the layer's tensors")
        return masks if one else tuple(mask.unsqueeze(2) for mask in masks)

    def attributions(self, means: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """In the shape of the activation."""
        return tuple(map(self._on_activation, means, self.activations))

    def _on_activation(self, mean: Tensor, activation: Tensor) -> Tensor:
        """A mask for each image, (N, K) or (N, 1, *places), in the layer's shape."""
        if self._positions == "channels":
            shape = [1] * activation.dim()
            shape[0], shape[self.dim] = mean.shape
            mean = mean.view(shape)
        else:
            mean = mean.movedim(1, self.dim)
        return mean.to(activation.dtype).expand_as(activation).contiguous().clone()


def check_activations(
    activations: tuple[Tensor, ...], num_images: int, channel_dim: int, batch: int
) -> int:
    """What a layer gave, checked: the channel dimension, counted from the front.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If a tensor has not one row for each image, no channels, or values
            that are not finite.
    """
    checks.check_count("channel_dim", channel_dim, minimum=-(10**6))
    found = set()
    for activation in activations:
        checks.check_floating("what layer gives", activation)
        shape = tuple(activation.shape)
        if not shape or shape[0] != num_images or 0 in shape:
            raise ValueError(
                f"layer must give one row for each of the {num_images} examples, got "
                f"an activation of shape {shape}{_one_at_a_time(num_images, batch)}"
            )
        if len(shape) < 2:
            raise ValueError(f"layer must give channels, got values of shape {shape}")
        dim = checks.check_channel_dim(shape, channel_dim)
        if not activation.isfinite().all():
            raise ValueError("layer must give finite values, got NaN or infinity")
        found.add(dim)
    if len(found) > 1:
        raise ValueError(
            "channel_dim must mean the same dimension of each of the layer's tensors, "
            f"got {channel_dim} for shapes "
            f"{' and '.join(str(tuple(tensor.shape)) for tensor in activations)}"
        )
    return found.pop()


def _one_at_a_time(num_images: int, batch: int) -> str:
    if min(num_images, batch) == 1:
        return ""
    return "; if forward_func takes batches of one alone: perturbations_per_eval=1"


def _baselines(
    baselines: Baselines, activations: tuple[Tensor, ...]
) -> tuple[float | Tensor, ...]:
    """One baseline for each tensor of the layer."""
    if not isinstance(baselines, tuple):
        return (baselines,) * len(activations)
    if len(baselines) != len(activations):
        raise ValueError(
            "layer_baselines must be as many as the layer's tensors, "
            f"{len(activations)}, got {len(baselines)}"
        )
    return baselines


def _left_out(baseline: float | Tensor, activation: Tensor) -> Tensor:
    """What becomes of an activation that is left out as a whole."""
    if not isinstance(baseline, Tensor) and (
        isinstance(baseline, bool) or not isinstance(baseline, (int, float))
    ):
        raise TypeError(
            f"layer_baselines must be numbers or tensors, got {type(baseline).__name__}"
        )
    left_out = torch.as_tensor(baseline).detach().to(activation)
    try:
        left_out = left_out.expand_as(activation)
    except RuntimeError:
        raise ValueError(
            "layer_baselines must broadcast to the activation, "
            f"{tuple(activation.shape)}, got {tuple(left_out.shape)}"
        ) from None
    if not left_out.isfinite().all():
        raise ValueError("layer_baselines must be finite, got NaN or infinity")
    return left_out
