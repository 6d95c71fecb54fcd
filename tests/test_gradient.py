"""The paper's descent: each step against a literal float64 one, and what it ends in."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    FadePerturbation,
    GradientSolver,
    Problem,
    presets,
)
from captum_extremal.solvers.gradient import _Descent
from reference.descent import Descent

SIZE = (16, 20)
AREAS = (0.1, 0.3)
STEP, SIGMA = 2, 6.0


def small_network():
    torch.manual_seed(1)
    convolution = nn.Conv2d(3, 6, 5, stride=2)
    return nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(288, 4))


def problem_of(network, inputs, game="preservation"):
    levels = BlurPerturbation(num_levels=4, sigma_max=3.0).levels(inputs)
    return Problem(lambda x, _: network(x[0])[:, 2] * 50, (levels,), AREAS, game)


SETTINGS = {
    "default": GradientSolver(),
    "paper": presets.paper()["solver"],
    "torchray": presets.torchray()["solver"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_step_equals_the_float64_reference(name):
    settings = dataclasses.replace(
        SETTINGS[name], mask_step=STEP, mask_sigma=SIGMA, iterations=6,
        score_weight=None, mirror=SETTINGS[name].mirror is not False,
    )  # fmt: skip
    inputs = torch.randn(2, 3, *SIZE)
    network = small_network()
    problem = problem_of(network, inputs)
    run = _Descent(settings, problem, seed=0)
    run.params[0].copy_(torch.rand(run.params[0].shape))
    levels = BlurPerturbation(num_levels=4, sigma_max=3.0).levels(inputs.double())
    exact = small_network().double()
    followed = Descent(
        settings, lambda x: exact(x)[0, 2] * 50, levels, AREAS, run.generators[0].masks
    )
    for iteration in range(settings.iterations):
        rewards, losses, params = followed.step(iteration, run.params[0])
        with torch.no_grad():
            run._step(iteration)
        torch.testing.assert_close(
            run.history["reward"][iteration].double(), rewards, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            run.history["area_loss"][iteration].double(), losses, rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(run.params[0].double(), params, rtol=0, atol=2e-4)
    assert (run.params[0] < 1).any(), "the parameters moved"


def corner(x):
    """A model that sees the first quarter of the rows and of the columns alone."""
    return x[0][:, :, :4, :5].mean(dim=(1, 2, 3)) * 50


def solve(settings, game="preservation", score=corner, areas=(1 / 16,), seed=0):
    torch.manual_seed(0)
    levels = FadePerturbation().levels(torch.rand(1, 1, *SIZE) + 0.5)
    problem = Problem(lambda x, _: score(x), (levels,), areas, game)
    return settings.solve(problem, seed=seed)


FAST = GradientSolver(iterations=60, mask_step=1, mask_sigma=2.0, mirror=False)


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_the_mask_covers_what_the_model_sees_in_every_game(game):
    (mask,) = solve(FAST, game).masks
    assert int((mask >= 0.5).sum()) == 20
    assert (mask[0, 0, :4, :5] >= 0.5).float().mean() > 0.8


def test_still_cells_finish_early_and_leave_the_others_alone():
    raw = dataclasses.replace(FAST, score_weight=None)
    alone = solve(dataclasses.replace(raw, tolerance=0.0), areas=(0.25,))
    both = solve(
        dataclasses.replace(raw, iterations=60, patience=10, tolerance=0.02),
        areas=(0.25, 1.0),
    )
    ended = both.history["reward"].isnan().any(dim=0)
    assert ended.tolist() == [False, True], "all ones is the mask of area 1"
    torch.testing.assert_close(both.masks[0][:1], alone.masks[0])


def test_no_cell_finishes_early_at_tolerance_zero():
    solution = solve(dataclasses.replace(FAST, tolerance=0.0), areas=(1.0,))
    assert not solution.history["reward"].isnan().any()


def test_signals_are_never_mirrored():
    levels = FadePerturbation().levels(torch.rand(1, 2, 30))
    seen = []

    def score(x, _):
        seen.append(x[0].detach().clone())
        return x[0].sum(dim=(1, 2))

    problem = Problem(score, (levels,), (0.5,))
    GradientSolver(iterations=1, mirror=True).solve(problem)
    seen = seen[4:]  # uniform masks came first
    torch.testing.assert_close(seen[0], levels[:, -1], atol=0.2, rtol=0)
    assert (seen[0] - levels[:, -1].flip(-1)).abs().max() > 0.3


def test_the_presets_are_the_published_settings():
    paper, torchray = presets.paper(), presets.torchray()
    weights = [paper["solver"].area_weight(t, 1600) for t in (0, 533, 534, 1599)]
    assert weights == [300, 300, 600, 1200]
    weights = [torchray["solver"].area_weight(t, 800) for t in (0, 1, 799)]
    assert weights == pytest.approx([300 * 1.0035**t for t in (0, 1, 799)])
    assert torchray["perturbation"].border == "fade"


@pytest.mark.parametrize("name", ["paper", "torchray"])
def test_presets_run_as_they_are(name):
    preset = getattr(presets, name)()
    preset["solver"] = dataclasses.replace(preset["solver"], iterations=5)
    method = ExtremalPerturbation(lambda x: corner((x,)), **preset)
    result = method.optimize(torch.rand(1, 1, *SIZE), areas=0.25)
    assert result.settings["solver"] == repr(preset["solver"])
    assert int((result.masks >= 0.5).sum()) == 80


def test_views_of_a_tuple_follow_each_tensors_own_axes():
    levels = tuple(
        FadePerturbation().levels(x)
        for x in (torch.rand(1, 2, 9, 9), torch.arange(1.0, 41.0).reshape(1, 2, 20))
    )
    seen = []

    def score(x, _):
        seen.append(x[1].detach().clone())
        return x[0].sum(dim=(1, 2, 3)) + x[1].sum(dim=(1, 2))

    solver = GradientSolver(iterations=8, jitter=0.2)
    solver.solve(Problem(score, levels, (0.5,)))
    for signal in seen:
        assert signal[0, 0].max() <= 20, "channels must not be shifted"
        drops = (signal[0, 0].diff() < 0).sum()
        assert drops <= 8, "signals must not be mirrored"


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_the_unit_of_the_score_does_not_matter(game):
    settings = dataclasses.replace(FAST, iterations=20)
    found = [
        solve(settings, game, lambda x, unit=unit: unit * corner(x) + 3).masks[0]
        for unit in (1.0, 1 / 1024, 1024.0)
    ]
    for masks in found[1:]:
        torch.testing.assert_close(masks, found[0], atol=1e-3, rtol=0)
    raw = dataclasses.replace(settings, score_weight=None)
    small, large = (
        solve(raw, game, lambda x, unit=unit: unit * corner(x)).masks[0]
        for unit in (1 / 1024, 1.0)
    )
    assert (small - large).abs().max() > 0.1
