"""The forward-only search: what it finds, what it costs, what it draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from captum_extremal import (
    ExtremalPerturbation,
    FadePerturbation,
    Problem,
    SearchSolver,
)
from captum_extremal.solvers.surrogate import upper_bound

SIZE = (32, 32)
rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
OBJECT = (rows - 10) ** 2 + (columns - 20) ** 2 <= 36  # 113 pixels, 11 %
OTHER = (rows - 24) ** 2 + (columns - 6) ** 2 <= 16


def see(x):
    """A model that sees one large disk, and a smaller one less for each pixel."""
    return 8 * x[:, 0, OBJECT].mean(dim=1) + 2 * x[:, 0, OTHER].mean(dim=1)


def problem_of(score=see, areas=(0.11,), game="preservation", images=1, chunk=16):
    levels = FadePerturbation().levels(torch.ones(images, 1, *SIZE))
    return Problem(lambda x, _: score(x[0]), (levels,), areas, game, chunk)


def solve(settings=None, seed=0, **options):
    return (settings or SearchSolver()).solve(problem_of(**options), seed)


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_the_mask_sits_on_what_the_model_sees(game):
    (mask,) = solve(game=game).masks
    kept = mask[0, 0] >= 0.5
    assert (kept & OBJECT).sum() / OBJECT.sum() > 0.9


def test_a_larger_area_takes_the_second_disk_as_well():
    (mask,) = solve(areas=(0.2,)).masks
    kept = mask[0, 0] >= 0.5
    assert (kept & OBJECT).sum() / OBJECT.sum() > 0.9
    assert (kept & OTHER).sum() / OTHER.sum() > 0.8


def test_the_area_is_exact_for_every_area_at_once():
    areas = (0.004, 0.05, 0.37, 0.8, 1.0)
    (masks,) = solve(SearchSolver(evaluations=48), areas=areas).masks
    counts = (masks >= 0.5).flatten(1).sum(dim=1).tolist()
    assert counts == [round(area * 1024) for area in areas]
    assert masks.min() >= 0
    assert masks.max() <= 1


@pytest.mark.parametrize("areas", [(0.1,), (0.05, 0.1, 0.2)])
@pytest.mark.parametrize("evaluations", [1, 5, 40, 128])
def test_the_budget_is_kept_all_in(areas, evaluations):
    seen = []

    def score(x):
        seen.append(len(x))
        return see(x)

    heard = []
    solver = SearchSolver(evaluations=evaluations)
    solver.solve(problem_of(score, areas, images=2), 0, heard.append)
    assert sum(seen) <= 2 * len(areas) * evaluations
    assert sum(seen) > 2 * len(areas) * (evaluations - 1)
    assert sum(heard) == evaluations


def test_more_evaluations_find_better_masks():
    best = [
        float(solve(SearchSolver(evaluations=n), areas=(0.16,)).history["reward"][-1])
        for n in (8, 64, 256)
    ]
    assert best[0] < best[1] < best[2]


def test_the_history_is_the_best_so_far():
    reward = solve().history["reward"][:, 0]
    assert (reward.diff() >= 0).all()
    assert reward[-1] > reward[0]


@pytest.mark.parametrize("edge", [0.0, 0.02, 0.1])
def test_what_was_scored_is_what_is_delivered(edge):
    problem = problem_of()
    solution = SearchSolver(edge=edge).solve(problem)
    delivered = problem.rewards(solution.masks, torch.tensor([0]))
    assert float(delivered) == pytest.approx(
        float(solution.history["reward"][-1, 0]), abs=1e-4
    )


def test_a_cell_finds_the_same_mask_alone_and_in_company():
    alone = solve(SearchSolver(evaluations=96), areas=(0.11,)).masks[0]
    images = solve(SearchSolver(evaluations=96), areas=(0.11,), images=3).masks[0]
    for mask in images:
        torch.testing.assert_close(mask, alone[0])


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_size_of_a_forward_changes_nothing(chunk):
    both = [
        solve(areas=(0.05, 0.2), images=2, chunk=size).masks[0] for size in (16, chunk)
    ]
    torch.testing.assert_close(*both)


def test_the_seed_is_the_only_source_of_randomness():
    one, same, other = (solve(seed=seed).masks[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


OPTIONS = {
    "evaluations": 40,
    "batch": 4,
    "edge": 0.1,
    "proposals": 20,
    "elites": 1,
    "exploration": 5.0,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_outcome(option):
    changed = dataclasses.replace(SearchSolver(), **{option: OPTIONS[option]})
    before, after = solve(), solve(changed)
    series = before.history["reward"], after.history["reward"]
    same = torch.equal(before.masks[0], after.masks[0])
    assert series[0].shape != series[1].shape or not torch.equal(*series) or not same


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("evaluations", 0, "evaluations must be at least 1, got 0"),
        ("batch", 2.5, r"batch must be an int, got 2\.5 \(float\)"),
        ("edge", -1.0, r"edge must be finite and at least 0, got -1\.0"),
        ("proposals", 0, "proposals must be at least 1, got 0"),
        ("elites", 0, "elites must be at least 1, got 0"),
        ("exploration", -0.5, "exploration must be finite and at least 0, got -0.5"),
    ],
)
def test_bad_settings(option, value, text):
    with pytest.raises((ValueError, TypeError), match=text):
        SearchSolver(**{option: value})


def test_a_constant_model_still_gets_masks_of_the_area():
    (masks,) = solve(score=lambda x: x.new_zeros(len(x)), areas=(0.1, 0.3)).masks
    assert (masks >= 0.5).flatten(1).sum(dim=1).tolist() == [102, 307]


def test_a_score_that_is_not_finite_names_image_and_area():
    def score(x):
        return torch.where(x.mean(dim=(1, 2, 3)) < 0.5, see(x), torch.nan)

    with pytest.raises(RuntimeError, match=r"got nan for image 0 and area 0\.7"):
        solve(score=score, areas=(0.7,))


def test_a_black_box_without_gradients():
    def black_box(x):
        return torch.from_numpy(see(x).numpy())

    method = ExtremalPerturbation(black_box, "fade", solver=SearchSolver())
    result = method.optimize(torch.ones(1, 1, *SIZE), areas=(0.11,))
    kept = result.masks[0, 0, 0] >= 0.5
    assert (kept & OBJECT).sum() / OBJECT.sum() > 0.9


def test_signals_and_volumes():
    for size in ((200,), (12, 14, 10)):
        part = tuple(slice(0, n // 2) for n in size)

        def score(x, part=part):
            return x[(slice(None), 0, *part)].flatten(1).mean(dim=1)

        levels = FadePerturbation().levels(torch.ones(1, 1, *size))
        problem = Problem(lambda x, _, s=score: s(x[0]), (levels,), (0.5 ** len(size),))
        (mask,) = SearchSolver().solve(problem).masks
        inside = (mask[(0, 0, *part)] >= 0.5).float().mean()
        assert inside > 0.8, size


def test_two_inputs_get_a_mask_each():
    levels = tuple(
        FadePerturbation().levels(torch.ones(1, 1, *size)) for size in (SIZE, (20, 24))
    )

    def score(x, _):
        return see(x[0]) + 8 * x[1][:, 0, 10:, 12:].mean(dim=(1, 2))

    first, second = SearchSolver().solve(Problem(score, levels, (0.2,))).masks
    assert (first[0, 0][OBJECT] >= 0.5).float().mean() > 0.8
    assert (second[0, 0, 10:, 12:] >= 0.5).float().mean() > 0.6
    assert int((second >= 0.5).sum()) == 96


def test_the_surrogate_equals_a_literal_gaussian_process():
    torch.manual_seed(0)
    known, new = torch.rand(6, 5).double(), torch.rand(3, 5).double()
    rewards = torch.randn(6).double()

    def kernel(u, v):
        return torch.exp(-((u - v) ** 2).sum() / 2) + (u * v).sum()

    values = (rewards - rewards.mean()) / rewards.std()
    covariance = torch.stack(
        [torch.stack([kernel(u, v) for v in known]) for u in known]
    )
    inverse = torch.linalg.inv(covariance + 0.1 * torch.eye(6).double())
    for candidate, bound in zip(
        new, upper_bound(known, rewards, new, 0.7), strict=True
    ):
        cross = torch.stack([kernel(candidate, v) for v in known])
        mean = cross @ inverse @ values
        variance = kernel(candidate, candidate) - cross @ inverse @ cross
        assert float(bound) == pytest.approx(float(mean + 0.7 * variance.sqrt()))
