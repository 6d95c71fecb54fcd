r"""Model and inputs -> a mask, by descent on the score, its size and its roughness.

Meaningful perturbation (Fong & Vedaldi 2017) minimises over coarse masks
:math:`m \in [0, 1]`, 1 = kept, in its deletion game

.. math::
    \lambda_1 \sum_u (1 - m_u) + \lambda_2 \sum_u \|\nabla m_u\|_\beta^\beta
    + f(\Phi(x(\cdot - \tau); m))

and in its preservation game the same with :math:`m_u` for :math:`1 - m_u` and
:math:`-f` for :math:`f`. :math:`\Phi` perturbs the input where the enlarged and
smoothed mask says so, :math:`\tau` is a small random shift, another one at each step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base import checks
from captum_extremal._base.axes import scaled, scales
from captum_extremal._base.captum_door import (
    ProgressBar,
    Target,
    as_tuple,
    like_inputs,
    progress_bar,
    score_of_rows,
)
from captum_extremal._base.model import check_differentiable
from captum_extremal.attribution.on_model import OnModel, watched
from captum_extremal.masks.lattice import LINEAR
from captum_extremal.perturbations.apply import apply_mask
from captum_extremal.perturbations.blur import gaussian_blur
from captum_extremal.perturbations.levels import Perturbation, levels_of

_RADII = tuple(tenth / 10 for tenth in range(11))  # of the disks to start from
_SIDE = 224  # of the inputs that the published values are for
_CELLS = 28  # along each of their axes
_CELLS_OF_SIGNAL = 128  # along an only axis

Score = Callable[[tuple[Tensor, ...], Tensor], Tensor]


class MeaningfulPerturbation(OnModel, PerturbationAttribution):
    """The smallest smooth mask that makes the score vanish, or keeps it.

    The weights of its terms are made for the softmax probability, so let
    ``forward_func`` return that; with logits the score outweighs size and smoothness.

    The defaults are the published ones for inputs of 224 x 224: terms and weights, a
    mask of 28 x 28, Adam, the blurs and the jitter. For inputs of another size, series
    and volumes those in pixels scale with the geometric mean of the sides, and the
    weights so that size costs the same share of the score whatever the number of cells.
    So is the start, the smallest disk in the middle of the input that, deleted, takes
    away 99 % of what the perturbation of all takes away of the score; in the
    preservation game, that keeps 99 % of it.

    Args:
        forward_func: The model, or any differentiable function of its inputs, as
            everywhere in Captum. It is neither moved nor put in evaluation mode.
        perturbation: What a deleted pixel looks like: an object with a ``levels``
            method; None for the published blur: that of ``BlurPerturbation`` with two
            levels and a ``sigma_max`` of 10 pixels at 224 x 224.

    Raises:
        TypeError: If an argument is of a kind that cannot work.

    Example:
        >>> import torch
        >>> from captum_extremal import FadePerturbation
        >>> from captum_extremal.peers import MeaningfulPerturbation
        >>> def top_left(x):  # a model that looks at one corner
        ...     return x[:, :, :8, :8].mean(dim=(1, 2, 3))
        >>> method = MeaningfulPerturbation(top_left, FadePerturbation())
        >>> x = torch.ones(1, 1, 32, 32)
        >>> attribution = method.attribute(x, iterations=40, mask_sigma=1.0)
        >>> bool(attribution[0, 0, 4, 4] > 0.9), bool(attribution[0, 0, 20, 20] < 0.1)
        (True, True)

    References:
        R. Fong, A. Vedaldi: Interpretable Explanations of Black Boxes by Meaningful
        Perturbation. ICCV 2017.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        perturbation: Perturbation | None = None,
    ) -> None:
        super().__init__(forward_func)
        checks.check_callable("forward_func", forward_func)
        self.perturbation = _Blur() if perturbation is None else perturbation
        checks.check_method("perturbation", self.perturbation, "levels")

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        *,
        game: Literal["deletion", "preservation"] = "deletion",
        iterations: int = 300,
        learning_rate: float = 0.1,
        l1_weight: float | None = None,
        tv_weight: float | None = None,
        tv_beta: float = 3.0,
        mask_size: int | None = None,
        mask_sigma: float | None = None,
        jitter: int | None = None,
        seed: int = 0,
        perturbations_per_eval: int = 16,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""How much of each pixel is deleted, or kept, in the shape of the inputs.

        Args:
            inputs: (N, C, *S) with 1, 2 or 3 spatial sizes, floating point; or a tuple
                of such tensors, which then get a mask each.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`.
            additional_forward_args: Further arguments of the model; tensors with one
                entry an example go with their examples.
            game: ``"deletion"`` looks for the least to delete so that the score falls,
                ``"preservation"`` for the least to keep so that it stays.
            iterations: Steps of Adam.
            learning_rate: Of Adam.
            l1_weight: :math:`\lambda_1`, of the sum over the coarse mask. None for the
                published 1e-4 of 28 x 28 cells, and 0.0784 over the number of cells.
            tv_weight: :math:`\lambda_2`, of the sum of differences between neighbours
                in the coarse mask, to the power of ``tv_beta``. None for 100 times the
                default of ``l1_weight``, 1e-2 as published; for less in proportion
                where cells are narrower than the published 8 pixels.
            tv_beta: :math:`\beta`, at least 1.
            mask_size: Cells of the coarse mask along each axis, at most the input's
                pixels. None for the published 28, and 128 for series.
            mask_sigma: Standard deviation, in pixels of the input, of the Gaussian that
                smooths the enlarged mask; 0 for none. None for the published 5 pixels
                at 224 x 224.
            jitter: Along each axis the input is shifted by one of this many numbers of
                pixels around 0 at each step, the same for all examples; the border's
                pixels are repeated. 1 for no shifts. None for the published 4 at
                224 x 224.
            seed: Of the shifts' own random generator; the global ones stay untouched.
            perturbations_per_eval: The most perturbed inputs that one forward of the
                model holds. It does not change the result.
            show_progress: Show a progress bar on stderr.

        Returns:
            Attributions in [0, 1] with shape, dtype and device of ``inputs``, equal
            over channels: 1 - mask in the deletion game, the mask in the preservation
            game, enlarged and smoothed; a tuple if ``inputs`` is one.

        Raises:
            ValueError: If an argument's value is out of range; the message names it.
            TypeError: If an argument is of the wrong type.
            AssertionError: Captum's, if ``target`` does not fit the model's output.
            RuntimeError: If the model cuts the gradient or was made in inference mode,
                or a score becomes NaN or infinite.

        Example:
            See `MeaningfulPerturbation`.
        """
        tensors = as_tuple(inputs)
        checks.check_inputs(tensors)
        checks.check_choice("game", game, ("deletion", "preservation"))
        checks.check_count("seed", seed, minimum=0)
        checks.check_count("perturbations_per_eval", perturbations_per_eval)
        descent = _Descent(
            game, iterations, learning_rate, l1_weight, tv_weight, tv_beta, mask_size,
            mask_sigma, jitter, seed,
        )  # fmt: skip
        device = tensors[0].device
        check_differentiable(self.forward_func)
        with self._model_as_found(device) as watch:
            score = score_of_rows(
                self.forward_func,
                len(tensors[0]),
                target,
                additional_forward_args,
                device,
            )
            with torch.no_grad():
                levels = [levels_of(self.perturbation, x.detach()) for x in tensors]
            score = watched(watch, score, levels, perturbations_per_eval)
            chunks = torch.arange(len(tensors[0]), device=device)
            total = iterations * -(-len(chunks) // perturbations_per_eval)
            bar = progress_bar(show_progress, self.get_name(), total)
            try:
                parts = [
                    descent.masks(score, levels, images, bar)
                    for images in chunks.split(perturbations_per_eval)
                ]
            finally:
                bar.close()
            masks = [torch.cat(several) for several in zip(*parts, strict=True)]
            attributions = tuple(
                (1 - mask if game == "deletion" else mask)
                .to(x.dtype)
                .expand_as(x)
                .contiguous()
                for mask, x in zip(masks, tensors, strict=True)
            )
        return like_inputs(isinstance(inputs, tuple), attributions)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Blur:
    """The published perturbation: two levels, a blur of 10 pixels at 224 x 224."""

    def levels(self, inputs: Tensor) -> Tensor:
        """(N, C, *S) -> (N, 2, C, *S)."""
        return torch.stack(
            [gaussian_blur(inputs, scaled(10, inputs.shape[2:])), inputs], dim=1
        )


@dataclass(frozen=True)
class _Terms:
    """What the objective is for inputs of one size.

    Attributes:
        size: Spatial size of the inputs.
        cells: Of the coarse mask, along each axis.
        l1_weight: Of the sum over the coarse mask.
        tv_weight: Of the sum of its differences.
        mask_sigma: Of the Gaussian that smooths the enlarged mask, for each axis.
        jitter: Number of shifts along each axis.
        joined: Axes of a mask (n, 1, *cells) whose neighbours are to be alike.
    """

    size: tuple[int, ...]
    cells: tuple[int, ...]
    l1_weight: float
    tv_weight: float
    mask_sigma: tuple[float, ...]
    jitter: tuple[int, ...]
    joined: tuple[int, ...]

    def fine(self, coarse: Tensor) -> Tensor:
        """A coarse mask, enlarged and smoothed."""
        mode = LINEAR[len(self.size)]
        fine = F.interpolate(coarse, size=list(self.size), mode=mode)
        return gaussian_blur(fine, self.mask_sigma)

    def shifted(self, levels: Tensor, source: random.Random) -> Tensor:
        """Levels of an image that lies a few pixels off, (n, L, C, *S)."""
        for axis, jitter in enumerate(self.jitter, start=3):
            shift = source.randrange(jitter) - jitter // 2
            side = levels.shape[axis]
            if shift:
                pixels = torch.arange(side, device=levels.device) - shift
                levels = levels.index_select(axis, pixels.clamp(0, side - 1))
        return levels


@dataclass(frozen=True)
class _Descent:
    """The settings of `MeaningfulPerturbation.attribute`, and the search by them."""

    game: str
    iterations: int
    learning_rate: float
    l1_weight: float | None
    tv_weight: float | None
    tv_beta: float
    mask_size: int | None
    mask_sigma: float | None
    jitter: int | None
    seed: int

    def __post_init__(self) -> None:
        for name in ("iterations", "mask_size", "jitter"):
            if getattr(self, name) is not None:
                checks.check_count(name, getattr(self, name))
        for name in ("l1_weight", "tv_weight", "mask_sigma"):
            if getattr(self, name) is not None:
                checks.check_non_negative(name, getattr(self, name))
        checks.check_positive("learning_rate", self.learning_rate)
        if checks.check_positive("tv_beta", self.tv_beta) < 1:
            raise ValueError(f"tv_beta must be at least 1, got {self.tv_beta}")

    def masks(
        self, score: Score, levels: list[Tensor], images: Tensor, bar: ProgressBar
    ) -> list[Tensor]:
        """Masks of some of the images, (n, 1, *S) for each input tensor."""
        levels = [of[images] for of in levels]
        rows = torch.arange(len(images), device=images.device)
        terms = [self.terms(of.shape[3:]) for of in levels]
        coarse = self._start(score, levels, images)
        adam = torch.optim.Adam(coarse, lr=self.learning_rate)
        source = random.Random(self.seed)
        for _ in range(self.iterations):
            with torch.enable_grad():
                perturbed = tuple(
                    apply_mask(term.shifted(of, source), term.fine(m), rows)
                    for of, m, term in zip(levels, coarse, terms, strict=True)
                )
                scores = score(perturbed, images)
                _check_scores(scores)
                sign = 1 if self.game == "deletion" else -1
                loss = sign * scores.sum() + sum(map(self._penalty, coarse, terms))
            gradients = torch.autograd.grad(loss, coarse)
            for m, gradient in zip(coarse, gradients, strict=True):
                m.grad = gradient
            adam.step()
            with torch.no_grad():
                for m in coarse:
                    m.clamp_(0, 1)
            bar.update()
        with torch.no_grad():
            return [term.fine(m) for term, m in zip(terms, coarse, strict=True)]

    def terms(self, size: Sequence[int]) -> _Terms:
        """The given values, and for the others the published ones, as they scale.

        All of the mask costs what the published 784 cells cost, whatever their number.
        Roughness costs as much in comparison, but less where cells are narrower than
        the published 8 pixels: it would spread the mask far beyond a small object.
        """
        lengths = scales(size)
        most = self.mask_size
        if most is None:
            most = _CELLS if sum(map(bool, lengths)) > 1 else _CELLS_OF_SIGNAL
        cells = tuple(
            min(most, side) if length else side
            for side, length in zip(size, lengths, strict=True)
        )
        size_weight = 1e-4 * (_CELLS**2 / math.prod(cells))
        widths = [
            side / number
            for side, number, length in zip(size, cells, lengths, strict=True)
            if length
        ]
        width = math.prod(widths) ** (1 / max(1, len(widths)))
        published = _SIDE / _CELLS
        roughness_weight = 100 * size_weight * min(1, width / published)
        jitter = tuple(max(1, round(shifts)) for shifts in scaled(4, size))
        given, sigma = len(size), self.mask_sigma
        return _Terms(
            tuple(size),
            cells,
            size_weight if self.l1_weight is None else self.l1_weight,
            roughness_weight if self.tv_weight is None else self.tv_weight,
            scaled(5, size) if sigma is None else (sigma,) * given,
            jitter if self.jitter is None else (self.jitter,) * given,
            tuple(axis for axis, length in enumerate(lengths, start=2) if length),
        )

    def _start(
        self, score: Score, levels: list[Tensor], images: Tensor
    ) -> list[Tensor]:
        """Coarse masks of the smallest disk with 99 % of the whole effect."""
        terms = [self.terms(of.shape[3:]) for of in levels]
        rows = torch.arange(len(images), device=images.device)
        distances = [
            _distances(term.cells).to(of.device)
            for of, term in zip(levels, terms, strict=True)
        ]

        def disks(radii: Tensor) -> list[Tensor]:
            """For each image a disk of its radius, deleted or kept."""
            inside = [d < radii.view(-1, *[1] * (d.dim() + 1)) for d in distances]
            return [(i != (self.game == "deletion")).float() for i in inside]

        scores = []
        with torch.no_grad():
            for radius in _RADII:
                coarse = disks(torch.full_like(rows, radius, dtype=torch.float32))
                perturbed = tuple(
                    apply_mask(of, term.fine(m), rows)
                    for of, m, term in zip(levels, coarse, terms, strict=True)
                )
                scores.append(score(perturbed, images))
            effect = torch.stack(scores) - scores[0]
            enough = effect / effect[-1] >= 0.99
            enough[-1] = True
            radii = torch.tensor(_RADII, device=rows.device)[enough.int().argmax(0)]
            return [m.requires_grad_() for m in disks(radii)]

    def _penalty(self, coarse: Tensor, terms: _Terms) -> Tensor:
        """The first two terms, summed over the images."""
        shown = 1 - coarse if self.game == "deletion" else coarse
        roughness = [
            coarse.diff(dim=axis).abs().pow(self.tv_beta).sum() for axis in terms.joined
        ]
        return terms.l1_weight * shown.sum() + terms.tv_weight * sum(roughness)


def _distances(size: Sequence[int]) -> Tensor:
    """Of each cell from the middle, 1 in the corners of the input, (*size)."""
    axes = [(torch.arange(side) + 0.5) * 2 / side - 1 for side in size]
    squares = [axis**2 for axis in torch.meshgrid(*axes, indexing="ij")]
    return torch.stack(squares).mean(dim=0).sqrt()


def _check_scores(scores: Tensor) -> None:
    if not scores.requires_grad:
        raise RuntimeError(
            "forward_func must let a gradient pass to its inputs, got scores without"
        )
    if not scores.isfinite().all():
        raise RuntimeError("forward_func must give finite scores, got NaN or inf")
