"""Captum Insights (captum 0.8): options of its page -> attributions.

`register` puts the method into Insights' drop-down. Insights makes an object of a
registered class from a model and calls its ``attribute`` with what stands in the page's
fields: numbers and short texts. `_FromPage` makes a perturbation and a solver of them.
"""

from __future__ import annotations

from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor

from captum_extremal._base.checks import check_count, read_areas
from captum_extremal.attribution.masks import DEFAULT_AREAS
from captum_extremal.extremal import ExtremalPerturbation
from captum_extremal.perturbations import PERTURBATIONS
from captum_extremal.solvers import LevelSetSolver
from captum_extremal.solvers.rewards import GAMES, Game

_INSTALL = "pip install 'captum<0.9' flask flask-compress"


def register() -> None:
    """Offer "Extremal Perturbation" in the drop-down of Captum Insights.

    It changes Captum's tables of methods in place, for visualizers that exist already
    as well; a second call changes nothing. The method's arguments on the page are
    ``areas`` (numbers separated by commas), ``steps`` (iterations of `LevelSetSolver`),
    ``perturbation`` and ``game``, as in `ExtremalPerturbation`.

    Raises:
        ImportError: If Captum has no Insights, as from 0.9 on, or a package that
            Insights needs, such as flask, is not installed.

    Example:
        >>> from captum_extremal import insights
        >>> insights.register()  # needs captum 0.8 and flask  # doctest: +SKIP
    """
    try:
        from captum.insights.attr_vis import config
    except ModuleNotFoundError as error:
        raise ImportError(_why_not(error.name), name=error.name) from error
    name = ExtremalPerturbation.get_name()
    config.ATTRIBUTION_NAMES_TO_METHODS[name] = _FromPage
    config.ATTRIBUTION_METHOD_CONFIG[name] = config.ConfigParameters(
        params={
            "areas": config.StrConfig(value=", ".join(map(str, DEFAULT_AREAS))),
            "steps": config.NumberConfig(
                value=LevelSetSolver.iterations, limit=(1, None)
            ),
            "perturbation": config.StrEnumConfig(
                value="blur", limit=list(PERTURBATIONS)
            ),
            "game": config.StrEnumConfig(value="preservation", limit=list(GAMES)),
        },
        post_process={"areas": _areas, "steps": _steps},
    )


def _why_not(missing: str | None) -> str:
    if missing is not None and missing.startswith("captum."):
        return (
            "Captum removed Insights in 0.9. Use ExtremalResult.to_html for a page of "
            f"a result, or captum 0.8: {_INSTALL}"
        )
    return f"Captum Insights needs {missing}, which is not installed: {_INSTALL}"


class _FromPage(PerturbationAttribution):
    """`ExtremalPerturbation` as a function of what a page's fields can hold."""

    @log_usage()  # type: ignore[untyped-decorator]  # Insights calls `__wrapped__`
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Tensor | None = None,
        additional_forward_args: object = None,
        *,
        areas: tuple[float, ...],
        steps: int,
        perturbation: str,
        game: Game,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attributions like ``inputs``."""
        solver = LevelSetSolver(iterations=steps)
        method = ExtremalPerturbation(self.forward_func, perturbation, solver)
        attributions: Tensor | tuple[Tensor, ...] = method.attribute(
            inputs, target, areas, additional_forward_args, game=game
        )
        return attributions


def _areas(value: str | tuple[float, ...]) -> tuple[float, ...]:
    """The areas of a text.

    Insights keeps what this returns and hands it in again for the next picture.

    Example:
        >>> _areas("0.05, 0.1")
        (0.05, 0.1)
        >>> _areas(_areas("0.05, 0.1"))
        (0.05, 0.1)
    """
    return read_areas(value) if isinstance(value, str) else value


def _steps(value: int) -> int:
    return check_count("steps", value)
