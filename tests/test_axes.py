"""Axes that are not alike: leads x time, bands x time, few slices or frames."""

from __future__ import annotations

import math

import pytest
import torch

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    GradientSolver,
    LevelSetSolver,
    SearchSolver,
)
from captum_extremal._base.axes import is_short, lattice_steps, scales
from captum_extremal.masks.edges import smooth_edges
from captum_extremal.solvers.start import agree

ALL = slice(None)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), (224, 224)),
        ((480, 270), (360, 360)),  # a photograph
        ((1000,), (1000,)),
        ((30, 40, 45), (54000 ** (1 / 3),) * 3),
        ((12, 1000), (0, 1000)),
        ((1000, 22), (1000, 0)),
        ((1, 500), (0, 500)),
        ((80, 400), (80, 400)),
        ((64, 256), (0, 256)),
        ((65, 195), (65, 195)),
        ((65, 194), (math.sqrt(65 * 194),) * 2),
        ((22, 64), (0, 64)),
        ((64, 128), (math.sqrt(64 * 128),) * 2),
        ((8, 90, 160), (0, 120, 120)),
        ((70, 210, 8), (70, 210, 0)),
    ],
)
def test_what_lengths_are_fractions_of(size, expected):
    assert scales(size) == pytest.approx(expected)


def test_pictures_have_the_lattice_that_they_had():
    for size in [(224, 224), (100, 280), (32, 32), (40,), (30, 30, 60)]:
        mean = math.prod(size) ** (1 / len(size))
        assert lattice_steps(size) == (max(1, round(7 / 224 * mean)),) * len(size)
        assert not any(is_short(size))


LEADS = [
    ((12, 250), (7, ALL)),
    ((250, 19), (ALL, 4)),
    ((22, 200), (0, slice(50, 150))),
    ((3, 120), (1, slice(30, 80))),
    ((1, 120), (0, slice(30, 60))),
    ((64, 200), (10, ALL)),
    ((20, 50), (16, ALL)),
    ((40, 160), (slice(20, 26), ALL)),
]
BANDS = [
    ((80, 240), (slice(20, 28), ALL)),
    ((300, 70), (ALL, slice(5, 12))),
    ((80, 240), (ALL, slice(100, 124))),
]
SLICES = [
    ((8, 32, 32), (5, slice(6, 20), slice(10, 24))),
    ((40, 40, 10), (slice(5, 25), slice(8, 28), 3)),
    ((6, 24, 30), (2, ALL, ALL)),
]


PLANTED = [*LEADS, *BANDS, *SLICES]
CASES = [
    *(
        (solver, *case)
        for solver in (LevelSetSolver(), SearchSolver())
        for case in PLANTED
    ),
    *((GradientSolver(), *case) for case in PLANTED[::2]),  # two hundred steps each
    # The same part of all leads or frames.
    (SearchSolver(), (12, 250), (ALL, slice(100, 130))),
    (SearchSolver(), (257, 32), (slice(40, 60), ALL)),
    (LevelSetSolver(), (257, 32), (slice(40, 60), ALL)),
]


@pytest.mark.parametrize(
    ("solver", "size", "where"), CASES, ids=lambda it: str(it).split("(")[0]
)
def test_a_planted_lead_band_slice_or_frame_is_found(solver, size, where):
    truth = torch.zeros(size, dtype=torch.bool)
    truth[where] = True

    def model(x):  # in [0, 1], 1 where the truth is kept
        return x[:, 0, truth].mean(dim=1)

    area = float(truth.float().mean())
    method = ExtremalPerturbation(model, "fade", solver)
    result = method.optimize(torch.ones(1, 1, *size), areas=area)
    kept = result.masks[0, 0, 0] >= 0.5
    assert int(kept.sum()) == int(truth.sum())
    assert (kept & truth).sum() / truth.sum() >= 0.8


@pytest.mark.parametrize("size", [(8, 16, 100), (16, 32, 300), (12, 12, 128)])
@pytest.mark.parametrize("evaluations", [10, 128])
def test_a_search_over_two_short_axes_keeps_to_its_budget(size, evaluations):
    seen = []

    def model(x):
        seen.append(len(x))
        return x.flatten(1).sum(1)

    method = ExtremalPerturbation(model, "fade", SearchSolver(evaluations))
    result = method.optimize(torch.ones(1, 1, *size), areas=0.1)
    assert int((result.masks >= 0.5).sum()) == round(0.1 * math.prod(size))
    assert sum(seen) <= evaluations + 6  # the ends, and what was found


@pytest.mark.parametrize("size", [(12, 500), (1, 500), (500,)], ids=str)
def test_signals_that_are_compared_at_fixed_times_are_not_shifted(size):
    time = torch.arange(500.0)
    wave = torch.sin(2 * math.pi * time / 25).expand(size).clone()
    truth = torch.zeros(size, dtype=torch.bool)
    truth.view(-1, 500)[len(truth.view(-1, 500)) // 2, 100:300] = True
    pattern = wave * truth

    def model(x):
        return (x[:, 0] * pattern).flatten(1).sum(1) / pattern.square().sum()

    area = float(truth.float().mean())
    result = ExtremalPerturbation(model).optimize(wave[None, None], areas=area)
    assert float(result.scores) >= 0.85


def test_nothing_is_blurred_across_steps_that_stand_by_themselves():
    inputs = torch.randn(1, 1, 12, 200, generator=torch.Generator().manual_seed(0))
    levels = BlurPerturbation().levels(inputs)
    for lead in range(12):
        alone = BlurPerturbation(sigma_max=20 / 224 * 200).levels(inputs[:, :, lead])
        torch.testing.assert_close(levels[:, :, :, lead], alone)


@pytest.mark.parametrize("mirror", [None, False])
@pytest.mark.parametrize(
    ("size", "cause", "broad", "weight"),
    [
        ((48, 48), (slice(9, 18), slice(3, 12)), (slice(22, 45), slice(3, 45)), 0.3),
        ((48, 48), (slice(9, 18), slice(3, 12)), (slice(22, 45), slice(3, 45)), 0.4),
        ((40, 60), (slice(20, 30), slice(44, 54)), (ALL, ALL), 0.4),
        ((64, 32), (slice(50, 60), slice(2, 8)), (slice(5, 40), ALL), 0.35),
    ],
)
def test_a_cause_on_one_side_beside_a_broad_symmetric_one(
    mirror, size, cause, broad, weight
):
    """The mirror image of the cause is worth nothing, however alike the rest is."""
    weights = torch.zeros(size)
    weights[broad] = weight
    weights[cause] = 1
    patch = torch.zeros(size, dtype=torch.bool)
    patch[cause] = True
    method = ExtremalPerturbation(
        lambda x: (x[:, 0] * weights).sum((1, 2)) / patch.sum(),
        "fade",
        LevelSetSolver(mirror=mirror),
    )
    area = float(patch.float().mean())
    result = method.optimize(torch.ones(1, 1, *size), areas=area)
    kept = result.masks[0, 0, 0] >= 0.5
    assert (kept & patch).sum() / patch.sum() >= 0.8
    hard = method.evaluate(torch.ones(1, 1, *size), kept[None, None, None].float())
    assert float(hard) >= 0.85


def test_the_gradient_solver_keeps_a_cause_on_one_side_too():
    weights = torch.zeros(48, 48)
    weights[22:45, 3:45] = 0.3
    weights[9:18, 3:12] = 1
    method = ExtremalPerturbation(
        lambda x: (x[:, 0] * weights).mean((1, 2)), "fade", GradientSolver()
    )
    area = 81 / 48**2
    mask = method.optimize(torch.ones(1, 1, 48, 48), areas=area).masks[0, 0, 0]
    assert (mask[9:18, 3:12] >= 0.5).float().mean() >= 0.8


def test_a_symmetric_model_gets_its_mirror_image_whatever_areas_are_asked_for():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradients = torch.randn(1, 1024, generator=generator)
        assert agree(gradients, gradients, [0.1, 1.0]).item()
        assert not agree(gradients, -gradients, [0.1, 1.0]).item()


def test_the_edge_of_each_axis_is_as_wide_as_it_says():
    widths = (6.4, 32.0)
    region = torch.zeros(1, 80, 400, dtype=torch.bool)
    region[:, :40] = True
    alone = smooth_edges(region[:, :, 0], widths[0])[0, 0]
    torch.testing.assert_close(smooth_edges(region, widths)[0, 0, :, 200], alone)
    region = torch.zeros(1, 80, 400, dtype=torch.bool)
    region[:, :, :150] = True
    mask = smooth_edges(region, widths)[0, 0, 40]
    assert ((mask >= 0.5) == region[0, 40]).all()
    assert mask.diff().abs().max() <= math.pi / (4 * widths[1]) + 1e-5
    assert set(mask[[0, -1]].tolist()) == {0.0, 1.0}
