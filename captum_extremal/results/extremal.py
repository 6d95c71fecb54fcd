"""`ExtremalResult`: the masks of a run and what can be read off them.

The masks of all areas together show how much of the input a model needs: the smallest
area whose score reaches a threshold is the extremal perturbation (paper eq. 3), and
scores that grow with the area are monotonic evidence (eq. 8).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_extremal._base import files
from captum_extremal._base.checks import check_areas, check_non_negative
from captum_extremal.curve import Curve, monotonic, smallest_sufficient
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import EDGE, edge_widths, largest, smooth_edges
from captum_extremal.results.stability import Stability

if TYPE_CHECKING:
    from captum_extremal.extremality import Extremality, Method
    from captum_extremal.solvers import Solver

_FORMAT = "captum_extremal.ExtremalResult/1"


@dataclass(frozen=True, eq=False)
class ExtremalResult:
    """Masks for N images and A areas, their scores and how they were found.

    Scores are what the reward function makes of the model's output: with the default
    reward the output of the target, unscaled (logits if the model returns logits).

    Attributes:
        masks: (N, A, 1, *S) float32 in [0, 1], 1 = kept; a tuple of such tensors if
            the inputs were a tuple. Binarised at 0.5 each holds its area exactly.
        areas: The A areas, as asked for.
        scores: Scores of what each mask keeps, Phi(m * x), (N, A).
        complement_scores: Scores of what it leaves out, Phi((1 - m) * x), (N, A).
        input_score: Scores of the untouched inputs, Phi(x), (N,).
        perturbed_score: Scores of the fully perturbed inputs, Phi(0 * x), (N,).
        history: Named series of the search, each (N, A, T) for T iterations, NaN after
            a search's early end.
        settings: What the run was asked to do; JSON-serialisable.
        ranking: The place of every pixel, (N, 1, *S) float32 in [0, 1], evenly spaced:
            1 for what is kept even at the smallest area. A tuple if the inputs were
            one; None from solvers that do not rank, and for groups of features.
        stability: How far several runs agree; None but with the solver `Restarts`.

    Example:
        >>> import torch
        >>> result = ExtremalResult(
        ...     masks=torch.zeros(1, 2, 1, 4, 4),
        ...     areas=(0.1, 0.5),
        ...     scores=torch.tensor([[1.0, 3.0]]),
        ...     complement_scores=torch.tensor([[2.0, 0.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ... )
        >>> result.smallest_sufficient_area()
        tensor([0.5000])
        >>> result.smallest_sufficient_area(threshold=9.0)
        tensor([nan])
    """

    masks: Tensor | tuple[Tensor, ...]
    areas: tuple[float, ...]
    scores: Tensor
    complement_scores: Tensor
    input_score: Tensor
    perturbed_score: Tensor
    history: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    ranking: Tensor | tuple[Tensor, ...] | None = None
    stability: Stability | None = None

    def mask_at(
        self, area: float, *, edge: float = EDGE
    ) -> Tensor | tuple[Tensor, ...]:
        """The mask of any area: the pixels that the ranking puts first.

        Masks of growing areas are nested. Those in ``masks`` were refined, each for its
        own area, and score higher as a rule, unless the areas were None.

        Args:
            area: Fraction of the pixels, in (0, 1].
            edge: Half the width of the mask's edge, as of `LevelSetSolver`.

        Returns:
            (N, 1, *S), with ``round(area * pixels)`` pixels at or above 0.5; a tuple if
            the inputs were one.

        Raises:
            ValueError: If there is no ranking, or the area lies outside (0, 1].
            TypeError: If an argument is no number.

        Example:
            >>> import torch
            >>> from captum_extremal import ExtremalPerturbation
            >>> method = ExtremalPerturbation(lambda x: x[..., :4].mean((1, 2)), "fade")
            >>> result = method.optimize(torch.ones(1, 1, 8), areas=None)
            >>> result.mask_at(0.5)
            tensor([[[1., 1., 1., 1., 0., 0., 0., 0.]]])
        """
        if isinstance(area, list | tuple):
            raise TypeError(f"area must be one number, got {area!r}")
        (share,) = check_areas(area)
        check_non_negative("edge", edge)
        if self.ranking is None:
            raise ValueError("mask_at takes a ranking; this result has none")
        rankings = self.ranking if isinstance(self.ranking, tuple) else (self.ranking,)
        masks = []
        for ranking in rankings:
            count = area_count(ranking[0].numel(), share)
            region = largest(ranking.squeeze(1), [count])
            masks.append(smooth_edges(region, edge_widths(edge, ranking.shape[2:])))
        return tuple(masks) if isinstance(self.ranking, tuple) else masks[0]

    def smallest_sufficient_area(
        self, threshold: float | Tensor | None = None
    ) -> Tensor:
        """a* = min{a : Phi(m_a * x) >= Phi_0} over the areas of this result (eq. 3).

        Args:
            threshold: Phi_0, one number or one for each image (N,). None for the score
                of the untouched input, as in the paper.

        Returns:
            (N,), NaN where none of the areas reaches the threshold.
        """
        phi_0 = self.input_score if threshold is None else threshold
        return smallest_sufficient(self.areas, self.scores, phi_0)

    def curve(self, index: int = 0) -> Curve:
        """The scores of one of the images over its areas, in growing order."""
        rows = [getattr(self, name)[index] for name in files.SCORES]
        runs = None if self.stability is None else self.stability.of_image(index)
        return Curve.of(self.areas, *rows, runs=runs)

    def is_monotonic(self) -> Tensor:
        """Whether the score grows with the area below a*, for each image (eq. 8).

        The paper's test: all pairs of areas smaller than a* (where no area of the
        result suffices, all pairs of its areas), with Phi_0 = Phi(x).

        Returns:
            (N,) bool. True where fewer than two areas are left to compare.
        """
        return monotonic(self.areas, self.scores, self.smallest_sufficient_area())

    def rejudge(
        self,
        method: Method,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,  # noqa: ANN401
        additional_forward_args: object = None,
        *,
        solvers: Mapping[str, Solver] | None = None,
        random_masks: int = 64,
        perturbations_per_eval: int = 16,
        seed: int = 1,
        **arguments: Any,  # noqa: ANN401
    ) -> Extremality:
        """How extremal these masks are: what rivals of the same areas are worth.

        By eq. 2 a mask is the best of its area. That cannot be proven, but it can be
        challenged: by the same solver with another seed, by others, and by random
        smooth masks. All are scored by ``method`` in the game of this result.

        Args:
            method: What made this result, with the model: an `ExtremalPerturbation` or
                a `LayerExtremalPerturbation`.
            inputs: Those of the result, as are the next two.
            target: See above.
            additional_forward_args: See above.
            solvers: Rivals by name. None for ``again`` (the method's own) and
                ``search`` (`SearchSolver`); where the method's is `SearchSolver` the
                model may be a black box, so that ``again`` stands alone; for
                `GradientSolver`, of which a seed changes nothing, ``level set``
                (`LevelSetSolver`) takes the place of ``again``.
            random_masks: Random smooth masks of each area: level sets of fields with
                random parameters; random features with a ``feature_mask``. 0 for none.
            perturbations_per_eval: As in `ExtremalPerturbation.attribute`.
            seed: Of the solvers and of the random masks. That of the result itself
                would only repeat it.
            arguments: Whatever else ``optimize`` was given: ``feature_mask``, or
                ``channel_dim`` and the like of a layer.

        Returns:
            An `Extremality`.

        Raises:
            ValueError: If ``inputs`` are not of the shape of this result's masks,
                ``random_masks`` or ``seed`` is negative, or a rival is named random.
            TypeError: If ``method`` cannot evaluate or a rival cannot solve.
            SearchInterrupted: At Ctrl-C, as in `ExtremalPerturbation.optimize`.

        Example:
            >>> import torch
            >>> from captum_extremal import ExtremalPerturbation
            >>> def top(x):
            ...     return x[:, 0, :8].mean((1, 2))
            >>> method = ExtremalPerturbation(top, perturbation="fade")
            >>> x = torch.ones(1, 1, 32, 32)
            >>> result = method.optimize(x, areas=[0.1, 0.25])
            >>> verdict = result.rejudge(method, x, random_masks=8)
            >>> sorted(verdict.rivals)
            ['again', 'random', 'search']
            >>> bool((verdict.rewards > verdict.rivals["random"]).all())
            True
        """
        from captum_extremal.extremality import rejudge

        return rejudge(
            self,
            method,
            inputs,
            target,
            additional_forward_args,
            solvers=solvers,
            random_masks=random_masks,
            perturbations_per_eval=perturbations_per_eval,
            seed=seed,
            **arguments,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file; its JSON sits in the metadata.

        The file appears only once it is complete.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            OSError: If the folder does not exist or cannot be written to.
            TypeError: If JSON cannot hold the settings.
        """
        tensors = {name: getattr(self, name) for name in files.SCORES}
        tensors |= files.packed("masks", self.masks)
        if self.ranking is not None:
            tensors |= files.packed("ranking", self.ranking)
        if self.stability is not None:
            tensors |= self.stability.packed()
        tensors |= {f"history.{name}": s for name, s in self.history.items()}
        about = {
            "format": _FORMAT,
            "is_tuple": isinstance(self.masks, tuple),
            "areas": self.areas,
            "settings": self.settings,
        }
        files.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExtremalResult:
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: A file written by `save`.

        Returns:
            The same result, on the CPU.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is not one of `save`.
        """
        return files.load(path, "ExtremalResult", _FORMAT, cls._from_file)

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        images: Tensor | None = None,
        *,
        index: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        title: str | None = None,
        label: str | None = None,
        others: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Show one image as a page with a slider over the areas, in one file.

        Takes the arguments of `captum_extremal.report.to_html`, which this calls, and
        raises the same errors.

        Returns:
            The page.

        Example:
            >>> import torch
            >>> from captum_extremal import ExtremalPerturbation
            >>> method = ExtremalPerturbation(lambda x: x.mean((1, 2, 3)), "fade")
            >>> x = torch.rand(1, 1, 16, 16)
            >>> result = method.optimize(x, areas=[0.1, 0.25])
            >>> page = result.to_html(images=x, title="brightness")
            >>> page.startswith("<!doctype html>")
            True
        """
        from captum_extremal.page import to_html

        return to_html(
            self,
            path,
            images,
            index=index,
            mean=mean,
            std=std,
            title=title,
            label=label,
            others=others,
        )

    def _repr_html_(self) -> str | None:
        """In a notebook: the masks and scores of the first image, with a slider."""
        from captum_extremal.page import notebook_html

        return notebook_html(self)

    @classmethod
    def _from_file(
        cls, about: dict[str, Any], tensors: dict[str, Tensor]
    ) -> ExtremalResult:
        return cls(
            masks=files.unpacked("masks", tensors, about["is_tuple"]),
            areas=tuple(about["areas"]),
            **{name: tensors[name] for name in files.SCORES},
            history=files.named("history.", tensors),
            settings=about["settings"],
            ranking=files.unpacked("ranking", tensors, about["is_tuple"])
            if "ranking.0" in tensors
            else None,
            stability=Stability.from_file(tensors),
        )
