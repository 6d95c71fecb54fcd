"""The forward-only search: what it costs, and what guides it."""

from __future__ import annotations

import pytest
import torch

from captum_extremal import (
    ExtremalPerturbation,
    SearchSolver,
)
from captum_extremal.solvers.surrogate import upper_bound
from tiny_solvers import SIZE, kept_of, problem_of, see


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
