"""`ExtremalPerturbation`: model and inputs -> the smallest regions a model needs.

The way of the data: inputs (N, C, *S) -> perturbation levels -> a `Problem` of
N * A masks -> the solver's masks -> `ExtremalResult` (`optimize`) -> one attribution
of the shape of the inputs (`attribute`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from captum.log import log_usage
from torch import Tensor

from captum_extremal._base import checks
from captum_extremal._base.captum_door import Target, as_tuple
from captum_extremal.attribution.input_masks import InputMasks, SiteOf
from captum_extremal.attribution.masks import DEFAULT_AREAS, Asked
from captum_extremal.perturbations import PERTURBATIONS, Perturbation
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.sites.input import InputSite
from captum_extremal.solvers import Solver
from captum_extremal.solvers.rewards import Game, Reward

FeatureMask = Tensor | tuple[Tensor, ...] | None


class ExtremalPerturbation(InputMasks):
    r"""The mask of a given area that keeps the model's score highest.

    For each area :math:`a` it looks for

    .. math:: m_a = \operatorname{argmax}_{m \in M, |m| = a} \Phi(m \otimes x)

    (eq. 2), where :math:`m \otimes x` is the input with everything outside the mask
    perturbed, and M a family of smooth masks: level sets of smooth fields for the
    default `LevelSetSolver` and for `SearchSolver`, which needs no gradients, those of
    `MaskGenerator` for the paper's `GradientSolver`.
    Convention: mask 1 = kept, 0 = fully perturbed; an area is a fraction of the pixels
    of the input.

    Args:
        forward_func: The model, or any function of its inputs, as everywhere in
            Captum. It is neither moved nor put in evaluation mode.
        perturbation: ``"blur"`` (Gaussian, default), ``"fade"`` (to black, 0), another
            key of `captum_extremal.perturbations.PERTURBATIONS`, or an object such as
            `BlurPerturbation` with a ``levels`` method.
        solver: How masks are searched; None for `LevelSetSolver` with its defaults.
        reward: What is to be maximised of the model's output: ``(outputs, target) ->
            (K,)``; None for the target's score.

    Raises:
        ValueError: If ``perturbation`` is an unknown name.
        TypeError: If an argument is of a kind that cannot work.

    Example:
        >>> import torch
        >>> from captum_extremal import ExtremalPerturbation
        >>> def top_left(x):  # a model that looks at one corner
        ...     return x[:, :, :8, :8].mean(dim=(1, 2, 3))
        >>> x = torch.ones(1, 3, 32, 32)
        >>> method = ExtremalPerturbation(top_left, perturbation="fade")
        >>> attribution = method.attribute(x, areas=[1 / 16])
        >>> attribution.shape
        torch.Size([1, 3, 32, 32])
        >>> bool(attribution[0, 0, 4, 4] > attribution[0, 0, 20, 20])
        True

    References:
        R. Fong, M. Patrick, A. Vedaldi: Understanding Deep Networks via Extremal
        Perturbations and Smooth Masks. ICCV 2019.
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        perturbation: str | Perturbation = "blur",
        solver: Solver | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(forward_func, solver, reward)
        self.perturbation = _perturbation(perturbation)

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] | None = DEFAULT_AREAS,
        additional_forward_args: object = None,
        *,
        feature_mask: FeatureMask = None,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The mean of the masks over the areas, in the shape of the inputs.

        A pixel that is kept even at the smallest area gets the highest value; with one
        area the attribution is the mask itself. Everything else that a run finds comes
        from `optimize`, which takes the same arguments.

        Args:
            inputs: (N, C, *S) with 1, 2 or 3 spatial sizes, floating point; or a tuple
                of such tensors, which then get a mask each.
            target: Captum's ``target``: which output to explain, see
                :meth:`captum.attr.Saliency.attribute`.
            areas: One or more fractions of the input's pixels, each in (0, 1]. With a
                ``feature_mask`` fractions of the features (float), or numbers of them
                (int). None for the ranking of all pixels, from 1 for those kept at the
                smallest area to 0, evenly spaced: its level set at any area is a mask
                that `optimize` finds with ``areas=None``. It costs no more than a
                mask of each of three areas, takes a solver that ranks
                (`LevelSetSolver`, `SearchSolver`) and no ``feature_mask``.
            additional_forward_args: Further arguments of the model; tensors with one
                entry an example are repeated along with the inputs.
            feature_mask: As of :class:`captum.attr.FeatureAblation`: for each tensor
                the number of the feature that each element belongs to, integers that
                broadcast to the tensor, for all examples or for each. Features are kept
                or perturbed as a whole: superpixels, electrodes, bands, tokens or, for
                inputs (N, F), the columns of a table. The same number in two tensors is
                one feature. None for pixels.
            game: ``"preservation"`` keeps the score high inside the mask,
                ``"deletion"`` low outside it, ``"hybrid"`` both (Sec. 3.2).
            perturbations_per_eval: The most perturbed inputs that one forward of the
                model holds. It bounds memory and does not change the result. An input
                of more than 4 million numbers goes alone, in the hybrid game in two.
            seed: Of the solver's own random generator; the global ones stay untouched.
            show_progress: Show a progress bar on stderr.

        Returns:
            Attributions in [0, 1] with shape, dtype and device of ``inputs``, equal
            over channels (where they belong to the same features); a tuple if
            ``inputs`` is one. In types shorter than float32
            values next to 0.5 may round to it; the masks of `optimize` are exact.

        Raises:
            ValueError: If an argument's value is out of range; the message names it.
            TypeError: If an argument is of the wrong type.
            AssertionError: Captum's, if ``target`` does not fit the model's output.
            RuntimeError: If the model cuts the gradient, or its score becomes NaN or
                infinite during the search.
            SearchInterrupted: At Ctrl-C; its ``result`` holds the masks found until
                then.

        Example:
            See `ExtremalPerturbation`.
        """
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        return self._attributions(
            inputs,
            areas,
            asked,
            self._site_of(feature_mask),
            seed,
            show_progress,
            perturbation=self.perturbation,
        )

    def optimize(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        areas: float | Sequence[float] | None = DEFAULT_AREAS,
        additional_forward_args: object = None,
        *,
        feature_mask: FeatureMask = None,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        seed: int = 0,
        show_progress: bool = False,
    ) -> ExtremalResult:
        """The masks themselves, their scores and how they were found.

        Takes the arguments of `attribute` and raises the same errors. With
        ``areas=None`` the nested masks of 20 areas from 0.01 to 1, at the cost of the
        ranking and of judging them.

        Returns:
            An `ExtremalResult`.
        """
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        return self._optimized(
            inputs,
            areas,
            asked,
            self._site_of(feature_mask),
            seed,
            show_progress,
            perturbation=self.perturbation,
        )

    def evaluate(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        masks: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        *,
        feature_mask: FeatureMask = None,
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
    ) -> Tensor:
        """What masks of any origin are worth: the reward that a solver maximises.

        Args:
            inputs: As in `attribute`.
            masks: (N, A, 1, *S) in [0, 1], 1 = kept; a tuple of them if ``inputs`` is
                one. Their areas are the caller's business. With a ``feature_mask`` as
                `optimize` returns them.
            target: As in `attribute`.
            additional_forward_args: As in `attribute`.
            feature_mask: As in `attribute`.
            game: As in `attribute`.
            perturbations_per_eval: As in `attribute`.

        Returns:
            Rewards, (N, A).

        Raises:
            ValueError: If ``masks`` do not fit ``inputs`` or leave [0, 1], or another
                argument's value is out of range.
            TypeError: If an argument is of the wrong type.

        Example:
            >>> import torch
            >>> method = ExtremalPerturbation(lambda x: x.mean((1, 2)), "fade")
            >>> masks = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.5]]]])
            >>> method.evaluate(torch.ones(1, 1, 4), masks)
            tensor([[0.2500, 0.6250]])
        """
        asked = Asked(target, additional_forward_args, game, perturbations_per_eval)
        return self._rewards(inputs, masks, asked, *self._site_of(feature_mask))

    def _site_of(self, feature_mask: FeatureMask) -> tuple[SiteOf, str | None]:
        """What masks are laid on, and what whole areas count, if anything."""
        if feature_mask is None:
            return self.site, None
        groups = as_tuple(feature_mask)
        return lambda inputs: InputSite(inputs, self.perturbation, groups), "feature"

    def site(self, inputs: tuple[Tensor, ...]) -> InputSite:
        """The places of the inputs."""
        return InputSite(inputs, self.perturbation)


def _perturbation(choice: str | Perturbation) -> Perturbation:
    if isinstance(choice, str):
        checks.check_choice("perturbation", choice, tuple(PERTURBATIONS))
        return PERTURBATIONS[choice]()
    checks.check_method("perturbation", choice, "levels")
    return choice
