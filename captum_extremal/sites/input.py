"""`InputSite`: masks over the places of an input, or over groups of its features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_extremal.perturbations import BlurPerturbation, Perturbation
from captum_extremal.perturbations.apply import Levels
from captum_extremal.perturbations.levels import levels_apart
from captum_extremal.sites.groups import Groups, has_places
from captum_extremal.sites.site import check_masks, fractions_of
from captum_extremal.solvers import LevelSetSolver, Solver, SwapSolver
from captum_extremal.solvers.problem import Masks


class InputSite:
    """Masks over inputs, perturbed where they say so.

    Args:
        tensors: (N, C, *S) each; with a feature mask also (N, F).
        perturbation: What happens to what is left out.
        feature_mask: Captum's numbers of features that share a value, one tensor for
            each; None for a value at each place.

    Raises:
        TypeError: If a tensor is not of a type that it must be.
        ValueError: If a tensor is not of a shape that it must be, or holds NaN.

    Example:
        >>> import torch
        >>> from captum_extremal import FadePerturbation
        >>> x = torch.tensor([[1.0, 2.0, 4.0]])
        >>> site = InputSite((x,), FadePerturbation(), (torch.tensor([0, 1, 1]),))
        >>> site.fractions([1])
        (0.5,)
        >>> site.laid((torch.tensor([[[[0.0, 1.0]]]]),))
        (tensor([[[0., 1., 1.]]]),)
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        perturbation: Perturbation,
        feature_mask: tuple[Tensor, ...] | None = None,
    ) -> None:
        self._tensors = tuple(tensor.detach() for tensor in tensors)
        if not all(tensor.isfinite().all() for tensor in self._tensors):
            raise ValueError("inputs must be finite, got NaN or infinity")
        self.spread: Groups | None = None
        if feature_mask is not None:
            self.spread = Groups(feature_mask, self._tensors)
        self.levels = tuple(
            self._levels(perturbation, which) for which in range(len(tensors))
        )

    @property
    def solver(self) -> Solver:
        """Places are neighbours. Groups are free; of them gradients tell less."""
        return LevelSetSolver() if self.spread is None else SwapSolver(rounds=32)

    def _levels(self, perturbation: Perturbation, which: int) -> Levels:
        tensor = self._tensors[which]
        if tensor.dim() == 2 and isinstance(perturbation, BlurPerturbation):
            raise ValueError(
                "perturbation must not be a blur for inputs (N, F), whose features "
                "are no neighbours; 'fade' or FadePerturbation(baseline) will do"
            )
        levels = levels_apart(perturbation, tensor)
        if has_places(self._shape(which)):
            return levels
        # Each channel has a mask of its own: all features lie in a row.
        if isinstance(levels, tuple):
            return tuple(level.flatten(1).unsqueeze(1) for level in levels)
        return levels.flatten(2).unsqueeze(2)

    def fractions(self, areas: Sequence[int | float]) -> tuple[float, ...]:
        """Areas as fractions of the groups, or of the places as they are."""
        if self.spread is None:
            return tuple(areas)
        return fractions_of(areas, [self.spread.count], "features", "the inputs'")

    def inputs(
        self, perturbed: tuple[Tensor, ...], _images: Tensor
    ) -> tuple[Tensor, ...]:
        """The perturbed inputs themselves."""
        if self.spread is None:
            return perturbed
        return tuple(
            values.reshape(len(values), *tensor.shape[1:])
            for values, tensor in zip(perturbed, self._tensors, strict=True)
        )

    def laid(self, masks: Masks) -> tuple[Tensor, ...]:
        """(N, A, 1, *S), or (N, A, ...) in the inputs' shape for masks by channel."""
        return masks if self.spread is None else self.spread.laid(masks[0])

    def attributions(self, means: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """In the shape of the inputs."""
        return tuple(
            mean.to(tensor.dtype).expand_as(tensor).contiguous().clone()
            for mean, tensor in zip(means, self._tensors, strict=True)
        )

    def read(self, masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Masks in the form of `laid`, as a solver would give them."""
        shapes = [self._shape(which) for which in range(len(self._tensors))]
        check_masks(masks, len(self._tensors[0]), shapes, "inputs")
        return masks if self.spread is None else (self.spread.read(masks),)

    def _shape(self, which: int) -> tuple[int, ...]:
        """Of a mask in a result, after N and A."""
        if self.spread is not None:
            return self.spread.shapes[which]
        return (1, *self._tensors[which].shape[2:])
