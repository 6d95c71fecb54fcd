"""`InputMasks`: masks over inputs, as the site that a subclass names lays them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from captum.log import log_usage
from torch import Tensor

from captum_extremal._base import checks
from captum_extremal._base.captum_door import Target, as_tuple, like_inputs
from captum_extremal._base.model import Watch
from captum_extremal.attribution.masks import (
    ANY,
    DEFAULT_AREAS,
    RANKED_AREAS,
    Asked,
    MaskAttribution,
    any_areas,
)
from captum_extremal.attribution.running import Found, SearchInterrupted, rewards_of
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.sites.site import Site, check_last
from captum_extremal.solvers import Problem, Solver
from captum_extremal.solvers.rewards import Game, Reward

SiteOf = Callable[[tuple[Tensor, ...]], Site]
Laid = AbstractContextManager[tuple[Problem, Site, Watch]]


class InputMasks(MaskAttribution):
    """A method whose masks are laid on something made of the inputs.

    A subclass says on what by `site`; ``attribute``, ``optimize`` and ``evaluate`` are
    there then, with the arguments of `ExtremalPerturbation` but ``feature_mask``.

    Args:
        forward_func: The model, or any function of its inputs.
        solver: How masks are searched; None for the default of the site.
        reward: What is to be maximised; None for the target's score.

    Raises:
        TypeError: If an argument is of a kind that cannot work.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        solver: Solver | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(forward_func, solver, reward)

    def site(self, inputs: tuple[Tensor, ...]) -> Site:
        """What masks of these inputs are laid on."""
        raise NotImplementedError

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] | None = DEFAULT_AREAS,
        additional_forward_args: object = None,
        *,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The mean of the masks over the areas, in the form that the site gives it.

        With ``areas=None`` the ranking of the places, see `ExtremalPerturbation`.
        """
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        laying = self._own_site, None
        return self._attributions(inputs, areas, asked, laying, seed, show_progress)

    def optimize(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] | None = DEFAULT_AREAS,
        additional_forward_args: object = None,
        *,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> ExtremalResult:
        """The masks themselves, their scores and how they were found."""
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        laying = self._own_site, None
        return self._optimized(inputs, areas, asked, laying, seed, show_progress)

    def evaluate(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        masks: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        *,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """What masks of any origin, as `optimize` returns them, are worth: (N, A)."""
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        return self._rewards(inputs, masks, asked, self._own_site)

    def _own_site(self, inputs: tuple[Tensor, ...]) -> Site:
        site = self.site(inputs)
        check_last(site, inputs)
        return site

    def _attributions(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        areas: float | Sequence[float] | None,
        asked: Asked,
        laying: tuple[SiteOf, str | None],
        seed: int,
        show_progress: bool,
        **about: object,
    ) -> Tensor | tuple[Tensor, ...]:
        """What `attribute` returns; for ``laying`` see `_laid`."""
        ranks = areas is None
        laid = self._laid(inputs, ANY if areas is None else areas, asked, *laying)
        found, site = self._found(laid, inputs, seed, show_progress, ranks, **about)
        attributions = site.attributions(found.of_images(ranks))
        return like_inputs(isinstance(inputs, tuple), attributions)  # type: ignore[no-any-return]

    def _optimized(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        areas: float | Sequence[float] | None,
        asked: Asked,
        laying: tuple[SiteOf, str | None],
        seed: int,
        show_progress: bool,
        **about: object,
    ) -> ExtremalResult:
        """What `optimize` returns; for ``laying`` see `_laid`."""
        ranks = areas is None
        wanted = RANKED_AREAS if areas is None else areas
        laid = self._laid(inputs, wanted, asked, *laying)
        found, _ = self._found(laid, inputs, seed, show_progress, ranks, **about)
        return self._result(found, inputs)

    def _laid(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        areas: float | Sequence[float],
        asked: Asked,
        site_of: SiteOf,
        counts: str | None = None,
    ) -> Laid:
        """The checked arguments as a problem; ``counts`` is what whole areas count."""
        tensors = as_tuple(inputs)
        several = (
            checks.check_areas(areas)
            if counts is None
            else checks.check_channel_areas(areas, counts)
        )
        checks.check_inputs(tensors, tables=counts is not None)

        def lay(_watch: Watch) -> AbstractContextManager[Site]:
            with torch.no_grad():
                return nullcontext(site_of(tuple(t.detach() for t in tensors)))

        return self._problem(tensors, asked, several, lay)

    def _found(
        self,
        laid: Laid,
        inputs: Tensor | tuple[Tensor, ...],
        seed: int,
        show_progress: bool,
        ranks: bool,
        **about: object,
    ) -> tuple[Found, Site]:
        """The search; at Ctrl-C it raises what was found."""
        seed = checks.check_count("seed", seed, minimum=0)
        with laid as (problem, site, watch):
            found = self._run(problem, site, watch, seed, show_progress, ranks, **about)
        if found.ended == "interrupt":
            raise SearchInterrupted(self._result(found, inputs))
        return found, site

    def _result(
        self, found: Found, inputs: Tensor | tuple[Tensor, ...]
    ) -> ExtremalResult:
        one, ranking = not isinstance(inputs, tuple), found.ranking
        return found.result(
            ExtremalResult, one, ranking=ranking[0] if ranking and one else ranking
        )

    def _rewards(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        masks: Tensor | tuple[Tensor, ...],
        asked: Asked,
        site_of: SiteOf,
        counts: str | None = None,
    ) -> Tensor:
        if isinstance(masks, tuple) != isinstance(inputs, tuple):
            raise TypeError(
                "masks must be a tuple if inputs are one, and a tensor if not, got "
                f"{type(masks).__name__}"
            )
        given = masks if isinstance(masks, tuple) else (masks,)
        areas = any_areas(given)
        with self._laid(inputs, areas, asked, site_of, counts) as laid:
            problem, site, watch = laid
            return rewards_of(problem, site.read(given), watch)
