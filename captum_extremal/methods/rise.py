r"""Model and inputs -> the mean of random masks, weighted by the scores they leave.

RISE (Petsiuk et al. 2018) for :math:`N` masks :math:`M_i` with values in [0, 1]:

.. math::
    S(u) = \frac{1}{\mathrm{E}[M] \cdot N} \sum_{i=1}^{N} f(x \odot M_i)\, M_i(u).

A mask is a small grid of independent zeros and ones (1 with probability
:math:`p = \mathrm{E}[M]`), enlarged by linear interpolation and cropped at a random
place, so that no pixel is always at the middle of a cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base import checks
from captum_extremal._base.captum_door import (
    ProgressBar,
    Target,
    as_tuple,
    like_inputs,
    progress_bar,
    score_of_rows,
)
from captum_extremal.attribution.on_model import OnModel, watched
from captum_extremal.masks.lattice import LINEAR
from captum_extremal.metrics._maps import room_for
from captum_extremal.perturbations.apply import apply_mask
from captum_extremal.perturbations.levels import (
    FadePerturbation,
    Perturbation,
    levels_of,
)


class RISE(OnModel, PerturbationAttribution):
    """Randomised input sampling: what the model still knows behind random masks.

    It needs forward evaluations alone. The published method scores with the softmax
    probability, so let ``forward_func`` return that: scores weight the masks, and large
    negative or all but equal ones drown what tells them apart.

    Args:
        forward_func: The model, or any function of its inputs, as everywhere in
            Captum. It is neither moved nor put in evaluation mode.
        perturbation: What a masked pixel looks like: an object with a ``levels``
            method; None for `FadePerturbation`, 0 as published, the mean colour of
            normalised images. ``FadePerturbation(baseline)`` fades to another baseline.

    Raises:
        TypeError: If an argument is of a kind that cannot work.

    Example:
        >>> import torch
        >>> from captum_extremal.peers import RISE
        >>> def right_half(x):  # a model that looks at one half
        ...     return x[..., 2:].mean(dim=(1, 2))
        >>> attribution = RISE(right_half).attribute(torch.ones(1, 1, 4), grid_size=2)
        >>> attribution.shape, int(attribution.argmax())
        (torch.Size([1, 1, 4]), 3)

    References:
        V. Petsiuk, A. Das, K. Saenko: RISE: Randomized Input Sampling for Explanation
        of Black-box Models. BMVC 2018.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        perturbation: Perturbation | None = None,
    ) -> None:
        super().__init__(forward_func)
        checks.check_callable("forward_func", forward_func)
        self.perturbation = perturbation or FadePerturbation()
        checks.check_method("perturbation", self.perturbation, "levels")

    @classmethod
    def get_name(cls) -> str:
        """Its published name, which Captum would spell out."""
        return "RISE"

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        *,
        num_masks: int = 4000,
        grid_size: int = 7,
        probability: float = 0.5,
        seed: int = 0,
        perturbations_per_eval: int = 16,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The mean of the masks, weighted by the scores, in the shape of the inputs.

        Args:
            inputs: (N, C, *S) with 1, 2 or 3 spatial sizes, floating point; or a tuple
                of such tensors, which then get masks of their own. All examples see
                the same masks.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`.
            additional_forward_args: Further arguments of the model; tensors with one
                entry an example are repeated along with the inputs.
            num_masks: Published: 4000 for VGG-16, 8000 for ResNet-50.
            grid_size: Cells along each axis; published 7.
            probability: That a cell is kept, in (0, 1); published 0.5.
            seed: Of the masks' own random generator; the global ones stay untouched.
            perturbations_per_eval: The most perturbed inputs that one forward of the
                model holds, and masks in memory. It does not change the result.
            show_progress: Show a progress bar on stderr.

        Returns:
            Attributions with shape, dtype and device of ``inputs``, equal over
            channels; a tuple if ``inputs`` is one. Their scale is the score's; what
            is beyond the largest number of the dtype becomes that number.

        Raises:
            ValueError: If an argument's value is out of range; the message names it.
            TypeError: If an argument is of the wrong type.
            AssertionError: Captum's, if ``target`` does not fit the model's output.
            RuntimeError: If a score is NaN or infinite.

        Example:
            See `RISE`.
        """
        tensors = as_tuple(inputs)
        checks.check_inputs(tensors)
        checks.check_count("num_masks", num_masks)
        checks.check_count("grid_size", grid_size)
        checks.check_fraction("probability", probability)
        checks.check_count("seed", seed, minimum=0)
        checks.check_count("perturbations_per_eval", perturbations_per_eval)
        device = tensors[0].device
        score = score_of_rows(
            self.forward_func, len(tensors[0]), target, additional_forward_args, device
        )
        source = torch.Generator().manual_seed(seed)
        masks = [
            _Masks.drawn(source, num_masks, grid_size, probability, x.shape[2:])
            for x in tensors
        ]
        with self._model_as_found(device) as watch, torch.no_grad():
            levels = [levels_of(self.perturbation, x.detach()) for x in tensors]
            score = watched(watch, score, levels, perturbations_per_eval)
            num_rows = num_masks * len(tensors[0])
            forwards = -(-num_rows // perturbations_per_eval)
            bar = progress_bar(show_progress, self.get_name(), forwards)
            try:
                sums = _weighted_sums(score, levels, masks, perturbations_per_eval, bar)
            finally:
                bar.close()
            if not all(total.isfinite().all() for total in sums):
                raise RuntimeError(
                    "forward_func must give finite scores, got NaN or inf"
                )
            attributions = tuple(
                (total * (room_for(num_masks) / (probability * num_masks)))
                .clamp(torch.finfo(x.dtype).min, torch.finfo(x.dtype).max)
                .to(x.dtype)
                .expand_as(x)
                .contiguous()
                for total, x in zip(sums, tensors, strict=True)
            )
        return like_inputs(isinstance(inputs, tuple), attributions)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Masks:
    """Random masks, kept as their grids and enlarged when they are needed.

    Attributes:
        grids: (num_masks, 1, *cells), 0 or 1.
        shifts: Where each enlarged grid is cropped, in pixels along each axis.
        size: Spatial size of a mask.
    """

    grids: Tensor
    shifts: list[list[int]]
    size: tuple[int, ...]

    @classmethod
    def drawn(
        cls,
        source: torch.Generator,
        num_masks: int,
        grid_size: int,
        probability: float,
        size: tuple[int, ...],
    ) -> _Masks:
        """Draw them all at once: numbers that do not depend on any chunk."""
        shape = (num_masks, 1, *[grid_size] * len(size))
        grids = torch.rand(shape, generator=source) < probability
        places = torch.rand(num_masks, len(size), generator=source)
        cells = torch.tensor([-(-side // grid_size) for side in size])
        return cls(grids, (places * cells).long().tolist(), tuple(size))

    def between(self, first: int, end: int, device: torch.device) -> Tensor:
        """The masks ``first .. end - 1``, (end - first, 1, *size)."""
        cells = self.grids.shape[2:]
        large = [
            (count + 1) * -(-side // count)
            for count, side in zip(cells, self.size, strict=True)
        ]
        grids = self.grids[first:end].to(device, torch.float32)
        enlarged = F.interpolate(grids, size=large, mode=LINEAR[len(cells)])
        masks = enlarged.new_empty(len(grids), 1, *self.size)
        for mask, whole, shift in zip(
            masks, enlarged, self.shifts[first:end], strict=True
        ):
            window = [
                slice(at, at + side) for at, side in zip(shift, self.size, strict=True)
            ]
            mask[0].copy_(whole[0][tuple(window)])
        return masks


def _weighted_sums(
    score: Callable[[tuple[Tensor, ...], Tensor], Tensor],
    levels: list[Tensor],
    masks: list[_Masks],
    perturbations_per_eval: int,
    bar: ProgressBar,
) -> list[Tensor]:
    """The sum over masks of score times mask, (N, 1, *S) for each input tensor.

    Divided by `room_for`, and in float64 where the device has it, so that sums of
    finite scores are finite and differences of large ones keep their digits.
    """
    num_images, device = len(levels[0]), levels[0].device
    num_masks = len(masks[0].grids)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sums = [
        torch.zeros(num_images, 1, *one.size, device=device, dtype=dtype)
        for one in masks
    ]
    # Rows in mask-major order, so that a chunk needs few masks.
    num_rows = num_masks * num_images
    for start in range(0, num_rows, perturbations_per_eval):
        rows = torch.arange(start, min(start + perturbations_per_eval, num_rows))
        first, end = start // num_images, int(rows[-1]) // num_images + 1
        images = (rows % num_images).to(device)
        own = (rows // num_images - first).to(device)
        shown = [one.between(first, end, device) for one in masks]
        perturbed = tuple(
            apply_mask(of, mask[own], images)
            for of, mask in zip(levels, shown, strict=True)
        )
        scores = score(perturbed, images)
        weights = torch.zeros(num_images, end - first, device=device, dtype=dtype)
        weights[images, own] = scores.to(dtype) / room_for(num_masks)
        for total, mask in zip(sums, shown, strict=True):
            total += (weights @ mask.flatten(1).to(dtype)).view(total.shape)
        bar.update()
    return sums
