"""The forward-only search: what it costs, and what guides it."""

from __future__ import annotations

import math

import pytest
import torch

from captum_extremal import (
    ExtremalPerturbation,
    FadePerturbation,
    Problem,
    SearchSolver,
)
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import largest
from captum_extremal.solvers.surrogate import upper_bound
from tiny_solvers import OBJECT, SIZE, kept_of, problem_of, see


def solve(settings=None, seed=0, **options):
    return (settings or SearchSolver()).solve(problem_of(**options), seed)


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


def test_a_black_box_without_gradients():
    def black_box(x):
        return torch.from_numpy(see(x).numpy())

    method = ExtremalPerturbation(black_box, "fade", solver=SearchSolver())
    result = method.optimize(torch.ones(1, 1, *SIZE), areas=(0.11,))
    assert kept_of(result.masks[0]) > 0.9


@pytest.mark.parametrize("areas", [(0.1,), (0.02, 0.05, 0.1, 0.2, 0.4)])
def test_nested_masks_cost_the_same_for_any_areas(areas):
    seen = []

    def score(x):
        seen.append(len(x))
        return see(x)

    problem = problem_of(score, areas, images=2)
    solution = SearchSolver().for_ranking().solve(problem)
    assert 2 * 3 * 127 < sum(seen) <= 2 * 3 * 128
    ranking = solution.ranking[0]
    for place, area in enumerate(areas):
        kept = largest(ranking.squeeze(1), [area_count(1024, area)])
        for image in range(2):
            mask = solution.masks[0][image * len(areas) + place, 0] >= 0.5
            assert torch.equal(mask, kept[image])
    assert solution.history["reward"].shape[1] == 2 * len(areas)


def test_a_ranking_of_a_black_box():
    method = ExtremalPerturbation(see, "fade", SearchSolver())
    x = torch.ones(1, 1, *SIZE)
    ranking = method.attribute(x, areas=None)
    result = method.optimize(x, areas=None)
    assert torch.equal(ranking, result.ranking)
    assert kept_of(result.mask_at(0.11)) > 0.8
    assert ranking[0, 0, OBJECT].mean() > 0.8 > ranking.mean()


def test_random_masks_tell_what_pixels_are_worth():
    torch.manual_seed(0)
    worth = torch.randn(1, 1, 6, 6)
    worth = torch.nn.functional.interpolate(worth, SIZE, mode="bicubic")[0, 0]

    def additive(x):
        return (x[:, 0] * worth).mean(dim=(1, 2))

    problem = problem_of(additive, (0.2,))
    run = SearchSolver(190).start(problem, 0)
    run.step()
    field = run.shapes[0].field(run.cells[0].first[0])[0]
    both = torch.stack([field.flatten(), worth.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.6


def test_no_mask_is_scored_twice():
    seen = []

    def score(x):
        seen.extend(tuple(row.tolist()) for row in x)
        return x @ torch.tensor([0.1, 3.0, 0.2, 2.0, 0.0])

    method = ExtremalPerturbation(score, "fade", SearchSolver(evaluations=60))
    features = torch.arange(5)[None]
    mask = method.attribute(torch.ones(1, 5), areas=2, feature_mask=features)
    assert mask.tolist() == [[0, 1, 0, 1, 0]]
    ends, learnt, found = 3, math.floor(0.35 * 59), 2
    searched = seen[ends + learnt : -found]
    assert 3 < len(set(searched)) == len(searched) <= 10  # of 5 over 2


def test_features_are_no_neighbours():
    worth = torch.zeros(40)
    worth[torch.tensor([3, 11, 20, 31])] = 1

    def score(x):
        return x @ worth

    method = ExtremalPerturbation(score, "fade", SearchSolver())
    result = method.optimize(
        torch.ones(1, 40), areas=4, feature_mask=torch.arange(40)[None]
    )
    assert float(result.scores) >= 3


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


# --- what inputs of other kinds ask of it ---


@pytest.mark.parametrize("size", [(80, 80, 240), (64, 64, 200), (513, 3000)])
def test_masks_are_compared_along_all_axes(size):
    problem = problem_of(lambda x: x.flatten(1).mean(1), size=size)
    shape = SearchSolver().start(problem, 0).shapes[0]
    coarse = shape.samples(torch.rand(2, *shape.field.points), 0.2)
    assert 0.1 < coarse.float().mean() < 0.3
    assert min(shape.coarse.size) >= 8
    assert coarse.shape[1] < 40_000


def test_a_second_input_of_one_pixel_changes_nothing():
    def score(x, _scalar=None):
        return see(x)

    def kept_in(masks):
        return float((masks[0, 0, 0] >= 0.5)[OBJECT].float().mean())

    method = ExtremalPerturbation(score, "fade", SearchSolver(64))
    x = torch.ones(1, 1, *SIZE)
    alone = method.optimize(x, areas=0.11).masks
    both = method.optimize((x, torch.ones(1, 1, 1)), areas=0.11).masks
    assert kept_in(alone) > 0.8
    assert kept_in(both[0]) > 0.8


def test_an_image_has_its_budget_whatever_stands_beside_it():
    worth = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    areas = (0.03, 0.2)

    def found_by(images, seed):
        seen = torch.zeros(4)

        def score(x, rows):
            seen.index_add_(0, images[rows], torch.ones(len(rows)))
            return (x[0][:, 0] * worth[images[rows]]).mean(dim=(1, 2))

        levels = FadePerturbation().levels(torch.ones(len(images), 1, 8, 8))
        problem = Problem(score, (levels,), areas)
        return SearchSolver(64).solve(problem, seed).masks[0], seen

    for seed in range(4):
        together, seen = found_by(torch.arange(4), seed)
        for image in range(4):
            alone, alone_seen = found_by(torch.tensor([image]), seed)
            assert torch.equal(together[2 * image : 2 * image + 2], alone)
            assert seen[image] == alone_seen[image] <= 2 * 64


def test_random_fields_vary():
    problem = problem_of(lambda x: x.flatten(1).mean(1), size=(12, 1000))
    shape = SearchSolver().start(problem, 0).shapes[0]
    fields = shape.random(200, 0.1, torch.Generator().manual_seed(0))
    along_leads = (fields.std(dim=1) < 1e-4).all(dim=1)
    along_time = (fields.std(dim=2) < 1e-4).all(dim=1)
    assert 0.1 < along_leads.float().mean() < 0.4
    assert 0.1 < along_time.float().mean() < 0.4
    assert not (along_leads & along_time).any()


def test_two_random_masks_teach_nothing():
    def first_field(shift):
        problem = problem_of(lambda x: see(x) + shift, (0.1,))
        run = SearchSolver(7).start(problem, 3)
        run.step()
        return run.cells[0].first[0]

    assert torch.equal(first_field(0.0), first_field(1e-6))


def test_a_score_that_is_not_finite_at_a_random_mask_is_told_so():
    def score(x):
        kept = (x[:, 0] > 0.5).flatten(1).float().mean(dim=1)
        return torch.where((kept > 0.12) & (kept < 0.9), torch.nan, see(x))

    with pytest.raises(RuntimeError, match="got nan at a random mask for image 0"):
        solve(areas=(0.1,), score=score)
