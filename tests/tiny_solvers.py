"""The solvers as cases: one table, from which `test_solvers` tests all, and a problem.

A case searches a picture of ones for what a model sees of it: two disks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_extremal import (
    AreaWeight,
    ChannelDescent,
    FadePerturbation,
    GradientSolver,
    LevelSetSolver,
    Problem,
    SearchSolver,
    Solution,
    SwapSolver,
)

SIZE = (32, 32)
rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
OBJECT = (rows - 10) ** 2 + (columns - 20) ** 2 <= 36  # 113 pixels, 11 %
OTHER = (rows - 24) ** 2 + (columns - 6) ** 2 <= 16


def see(x: Tensor) -> Tensor:
    """A model that sees one large disk, and a smaller one less for each pixel."""
    return 8 * x[:, 0, OBJECT].mean(dim=1) + 2 * x[:, 0, OTHER].mean(dim=1)


def uneven(x: Tensor) -> Tensor:
    """A model that sees all pixels, some more than others."""
    return (x[:, 0] * (rows + 0.3 * columns)).square().mean(dim=(1, 2)).sqrt()


def problem_of(
    score: Callable[..., Tensor] = see,
    areas: tuple[float, ...] = (0.11,),
    game: str = "preservation",
    images: int = 1,
    chunk: int = 16,
    size: tuple[int, ...] = SIZE,
) -> Problem:
    levels = FadePerturbation().levels(torch.ones(images, 1, *size))
    return Problem(lambda x, _: score(x[0]), (levels,), areas, game, chunk)


def kept_of(mask: Tensor, part: Tensor = OBJECT) -> float:
    """The share of a part of the picture that a mask (1, 1, *S) keeps."""
    return float((mask[0, 0] >= 0.5)[part].float().mean())


@dataclass(frozen=True)
class Case:
    """A solver of few steps, what it is good for and what its settings may be."""

    solver: Any
    shares: tuple[float, float]  # of the two disks that it finds at least
    refused: tuple[tuple[str, object, str], ...]
    changes: dict[str, Any]  # a value of each setting that gives something else
    chance: dict[str, Any] = field(default_factory=dict)  # what makes a seed count
    when: str = r" at iteration \d+"  # of a score that is not finite
    clear: dict[str, Any] = field(default_factory=dict)  # what makes it find more
    inside: float = 0.9  # of its masks that lies in the half that counts, at least
    exact: bool = True  # bit for bit, however large the forwards
    warns: bool = False  # where it meets no gradient

    def __str__(self) -> str:
        return type(self.solver).__name__

    def made(self, **changes: Any) -> Any:
        return dataclasses.replace(self.solver, **changes)

    def solve(self, *score: Any, clear: bool = False, **options: Any) -> Solution:
        solver = self.made(**self.clear) if clear else self.solver
        found: Solution = solver.solve(problem_of(*score, **options))
        return found


CASES = (
    Case(
        LevelSetSolver(iterations=24),
        shares=(0.95, 0.9),
        refused=(
            ("iterations", 0, "iterations must be at least 1, got 0"),
            ("learning_rate", 0.0, "learning_rate must be positive and finite, got 0"),
            ("edge", -1.0, "edge must be finite and at least 0, got -1.0"),
            ("jitter", 0.6, r"jitter must lie in \[0, 0.5\], got 0.6"),
            ("softness", (2.0, 0.1), r"softness must lie in \(0, 1\], got 2.0"),
            ("softness", 0.1, "softness must be a pair of numbers"),
            ("first_area", 1.5, r"first_area must lie in \[0, 1\], got 1.5"),
            ("mask_step", 0, "mask_step must be at least 1, got 0"),
            ("mirror", 1, "mirror must be True, False or None, got 1"),
            ("flat_background", 1, "flat_background must be True or False, got 1"),
        ),
        changes={
            "iterations": 6, "learning_rate": 0.1, "edge": 0.1, "softness": (0.6, 0.5),
            "mask_step": 4, "first_area": 0.9, "mirror": False, "jitter": 0.0,
        },
        clear={"edge": 0.0, "jitter": 0.0},
        warns=True,
    ),
    Case(
        GradientSolver(
            iterations=60, mask_step=1, mask_sigma=2.0, mirror=False, tolerance=0.0
        ),
        shares=(0.9, 0.0),
        refused=(
            ("iterations", 0, "iterations must be at least 1, got 0"),
            ("patience", 0, "patience must be at least 1, got 0"),
            ("jitter", -1, "jitter must be finite and at least 0, got -1"),
            ("learning_rate", 0.0, "learning_rate must be positive and finite, got 0"),
            ("momentum", -0.1, "momentum must be finite and at least 0, got -0.1"),
            ("area_scope", "all", "area_scope must be 'image' or 'canvas', got 'all'"),
            ("profile", "flat", "profile must be .smooth. or"),
            ("temperature", -1.0, "temperature must be finite and at least 0"),
            ("jitter", 0.6, r"jitter must lie in \[0, 0.5\], got 0.6"),
            ("mirror", 1, "mirror must be True, False or None, got 1"),
        ),
        changes={
            "iterations": 30, "learning_rate": 0.01, "momentum": 0.5, "dampening": 0.0,
            "area_weight": AreaWeight(start=30.0), "mask_step": 2, "mask_sigma": 3.0,
            "temperature": 0.2, "profile": "torchray", "area_scope": "canvas",
            "mirror": True, "jitter": 0.2, "score_weight": 30.0,
        },
        chance={"jitter": 0.2},
        inside=0.6,
    ),
    Case(
        SearchSolver(),
        shares=(0.9, 0.8),
        refused=(
            ("evaluations", 0, "evaluations must be at least 1, got 0"),
            ("batch", 2.5, r"batch must be an int, got 2\.5 \(float\)"),
            ("edge", -1.0, r"edge must be finite and at least 0, got -1\.0"),
            ("proposals", 0, "proposals must be at least 1, got 0"),
            ("elites", 0, "elites must be at least 1, got 0"),
            ("exploration", -0.5, "exploration must be finite and at least 0, got -0"),
            ("nested", 1, "nested must be True or False, got 1"),
        ),
        changes={
            "evaluations": 40, "batch": 4, "edge": 0.1, "proposals": 20, "elites": 1,
            "exploration": 5.0, "nested": True,
        },
        when="( at a random mask)?",
        exact=False,
    ),
    Case(
        SwapSolver(iterations=12, rounds=4),
        shares=(0.95, 0.9),
        refused=(
            ("iterations", 0, "iterations must be at least 1, got 0"),
            ("rounds", -1, "rounds must be at least 0, got -1"),
            ("rounds", 1.5, "rounds must be an int, got 1.5"),
            ("learning_rate", 0, "learning_rate must be positive and finite, got 0"),
            ("softness", (0, 1), "softness must be positive and finite, got 0"),
        ),
        changes={"iterations": 6, "learning_rate": 0.1, "softness": (0.5, 0.2)},
        warns=True,
    ),
    Case(
        ChannelDescent(iterations=60, learning_rate=0.05),
        shares=(0.95, 0.9),
        refused=(
            ("iterations", 0, "iterations must be at least 1, got 0"),
            ("learning_rate", -1, "learning_rate must be positive and finite, got -1"),
            ("area_weight", -1, "area_weight must be finite and at least 0, got -1"),
            ("ramp", 1.5, r"ramp must lie in \[0, 1\], got 1.5"),
        ),
        changes={
            "iterations": 30, "learning_rate": 0.02, "area_weight": 300.0, "ramp": 0.1,
        },
        inside=0.0,
    ),
)  # fmt: skip
