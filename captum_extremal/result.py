"""`ExtremalResult`: the masks of a run and what can be read off them.

The masks of all areas together show how much of the input a model needs: the smallest
area whose score reaches a threshold is the extremal perturbation (paper eq. 3), and
scores that grow with the area are monotonic evidence (eq. 8).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_extremal import _files
from captum_extremal._checks import check_count, check_method
from captum_extremal._curve import monotonic, smallest_sufficient
from captum_extremal.area import area_count
from captum_extremal.level_sets import (
    Field,
    edge_widths,
    random_regions,
    smooth_edges,
)
from captum_extremal.report import notebook_html, to_html
from captum_extremal.solvers import (
    GradientSolver,
    LevelSetSolver,
    SearchSolver,
    Solver,
)

_FORMAT = "captum_extremal.ExtremalResult/1"
_TOGETHER = 8  # random masks of each area that are scored in one go


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
    ) -> Extremality:
        """How extremal these masks are: what rivals of the same areas are worth.

        By eq. 2 a mask is the best of its area. That cannot be proven, but it can be
        challenged: by the same solver with another seed, by others, and by random
        smooth masks. All are scored by ``method`` in the game of this result.

        Args:
            method: What made this result, with the model: an `ExtremalPerturbation`.
            inputs: Those of the result, as are the next two.
            target: See above.
            additional_forward_args: See above.
            solvers: Rivals by name. None for ``again`` (the method's own) and
                ``search`` (`SearchSolver`); where the method's is `SearchSolver` the
                model may be a black box, so that ``again`` stands alone; for
                `GradientSolver`, of which a seed changes nothing, ``level set``
                (`LevelSetSolver`) takes the place of ``again``.
            random_masks: Random smooth masks of each area: level sets of fields with
                random parameters. 0 for none.
            perturbations_per_eval: As in `ExtremalPerturbation.attribute`.
            seed: Of the solvers and of the random masks. That of the result itself
                would only repeat it.

        Returns:
            An `Extremality`.

        Raises:
            ValueError: If ``inputs`` are not of the shape of this result's masks,
                ``random_masks`` or ``seed`` is negative, or a rival is named random.
            TypeError: If ``method`` cannot evaluate or a rival cannot solve.
            SearchInterrupted: At Ctrl-C, as in `ExtremalPerturbation.optimize`.

        Example:
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
        check_count("random_masks", random_masks, minimum=0)
        check_count("seed", seed, minimum=0)
        check_method("method", method, "evaluate")
        rival_solvers = _rivals_of(method.solver) if solvers is None else solvers
        _check_rivals(rival_solvers)
        options = {
            "game": self.settings.get("game", "preservation"),
            "perturbations_per_eval": perturbations_per_eval,
        }
        call = (target, additional_forward_args)
        rewards = method.evaluate(inputs, self.masks, *call, **options)
        rivals = {}
        for name, solver in rival_solvers.items():
            rival = copy.copy(method)
            rival.solver = solver
            found = rival.optimize(
                inputs,
                target,
                self.areas,
                additional_forward_args,
                seed=seed,
                **options,
            )
            rivals[name] = method.evaluate(inputs, found.masks, *call, **options)
        if random_masks:
            generator = torch.Generator().manual_seed(seed % 2**63)
            best = []
            for start in range(0, random_masks, _TOGETHER):
                number = min(_TOGETHER, random_masks - start)
                masks = self._random(number, generator)
                drawn = method.evaluate(inputs, masks, *call, **options)
                best.append(drawn.unflatten(1, (number, -1)).amax(dim=1))
            rivals["random"] = torch.stack(best).amax(dim=0)
        return Extremality(rewards, rivals)

    def _random(
        self, number: int, generator: torch.Generator
    ) -> Tensor | tuple[Tensor, ...]:
        """Random smooth masks of this result's areas, (N, number * A, 1, *S)."""
        found = []
        for mask in self._mask_tuple():
            size = tuple(mask.shape[3:])
            noise = Field(size, None, mask.device)
            counts = [area_count(math.prod(size), area) for area in self.areas]
            regions = random_regions(noise, counts, number * len(mask), generator)
            widths = edge_widths(LevelSetSolver().edge, size)
            found.append(smooth_edges(regions, widths).unflatten(0, (len(mask), -1)))
        return tuple(found) if isinstance(self.masks, tuple) else found[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file; its JSON sits in the metadata.

        The file appears only once it is complete.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            OSError: If the folder does not exist or cannot be written to.
            TypeError: If JSON cannot hold the settings.
        """
        tensors = {name: getattr(self, name) for name in _files.SCORES}
        tensors |= _files.packed("masks", self.masks)
        tensors |= {f"history.{name}": s for name, s in self.history.items()}
        about = {
            "format": _FORMAT,
            "is_tuple": isinstance(self.masks, tuple),
            "areas": self.areas,
            "settings": self.settings,
        }
        _files.write(path, tensors, about)

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
        return _files.load(path, "ExtremalResult", _FORMAT, cls._from_file)

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
        return notebook_html(self)

    @classmethod
    def _from_file(
        cls, about: dict[str, Any], tensors: dict[str, Tensor]
    ) -> ExtremalResult:
        return cls(
            masks=_files.unpacked("masks", tensors, about["is_tuple"]),
            areas=tuple(about["areas"]),
            **{name: tensors[name] for name in _files.SCORES},
            history=_files.named("history.", tensors),
            settings=about["settings"],
        )

    def _mask_tuple(self) -> tuple[Tensor, ...]:
        return self.masks if isinstance(self.masks, tuple) else (self.masks,)


@dataclass(frozen=True, eq=False)
class Extremality:
    """Rewards of masks beside the best that rivals of the same areas reach.

    Attributes:
        rewards: Of the masks in question, (N, A).
        rivals: For each rival its rewards, (N, A).

    Example:
        >>> rivals = {"random": torch.tensor([[1.0]])}
        >>> verdict = Extremality(torch.tensor([[3.0]]), rivals)
        >>> verdict.margin(), verdict.is_best()
        (tensor([[2.]]), tensor([[True]]))
    """

    rewards: Tensor
    rivals: dict[str, Tensor]

    def margin(self) -> Tensor:
        """How far the masks are above their best rival, (N, A); inf without one."""
        if not self.rivals:
            return torch.full_like(self.rewards, torch.inf)
        return self.rewards - torch.stack(list(self.rivals.values())).amax(dim=0)

    def is_best(self) -> Tensor:
        """Whether no rival scores higher, (N, A) bool."""
        return self.margin() >= 0


class Method(Protocol):
    """What `ExtremalResult.rejudge` needs of an `ExtremalPerturbation`."""

    solver: Solver

    def optimize(self, *args: Any, **kwargs: Any) -> ExtremalResult:  # noqa: ANN401
        """Inputs -> masks."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Inputs and masks -> rewards."""


def _rivals_of(solver: Solver) -> dict[str, Solver]:
    if isinstance(solver, SearchSolver):
        return {"again": solver}
    if isinstance(solver, GradientSolver):
        return {"level set": LevelSetSolver(), "search": SearchSolver()}
    return {"again": solver, "search": SearchSolver()}


def _check_rivals(solvers: Mapping[str, Solver]) -> None:
    if not isinstance(solvers, Mapping):
        raise TypeError(
            f"solvers must be a dict of solvers by name, got {type(solvers).__name__}"
        )
    for name, solver in solvers.items():
        if isinstance(solver, type):
            raise TypeError(f"solvers[{name!r}] must be a solver, got a class")
        check_method(f"solvers[{name!r}]", solver, "solve")
        if name == "random":
            raise ValueError("solvers must not be named random, which is taken")
