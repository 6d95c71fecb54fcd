"""The solvers of channels against all there is to find and the paper's steps."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from torch import nn

from captum_extremal import ChannelDescent, ChannelSolver, ExtremalPerturbation, Problem
from captum_extremal.solvers.swaps import _Climb, _Swaps


def problem_of(score, values, areas, **options):
    """One value a channel, (N, K); channels that are left out are 0."""
    activation = torch.as_tensor(values).unsqueeze(1)
    levels = torch.stack([torch.zeros_like(activation), activation], dim=1)

    def of_rows(inputs, images):
        return score(inputs[0].squeeze(1))

    return Problem(of_rows, (levels,), areas, **options)


def network(seed, channels):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(channels, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1)
    ).requires_grad_(False)


def best_of_all(problem, channels, count):
    """The highest reward of any mask of that count."""
    sets = list(itertools.combinations(range(channels), count))
    masks = torch.zeros(len(sets), 1, channels)
    for mask, chosen in zip(masks, sets, strict=True):
        mask[0, list(chosen)] = 1
    cells = torch.zeros(len(sets), dtype=torch.long)
    return float(problem.rewards((masks,), cells).max())


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_it_finds_the_best_of_all_sets(game):
    channels, counts = 10, (1, 2, 3, 5)
    areas = [count / channels for count in counts]
    hits = []
    for seed in range(6):
        model = network(seed, channels)
        values = torch.rand(1, channels)
        problem = problem_of(lambda x, m=model: m(x)[:, 0], values, areas, game=game)
        found = ChannelSolver().solve(problem).masks[0]
        assert found.sum(dim=(1, 2)).tolist() == list(counts)
        rewards = problem.rewards((found,), torch.arange(len(counts))).tolist()
        best = [best_of_all(problem, channels, count) for count in counts]
        assert all(r <= b + 1e-5 for r, b in zip(rewards, best, strict=True))
        hits += [abs(r - b) <= 1e-5 for r, b in zip(rewards, best, strict=True)]
    # All 24 but one, where no exchange of a pair helps.
    assert sum(hits) >= len(hits) - 1


def test_activation_times_gradient_takes_the_place_of_worse_masks():
    values = torch.tensor([[3.0, 1.0, 4.0, 2.0], [1.0, 5.0, 2.0, 3.0]])
    problem = problem_of(lambda x: x.sum(dim=1), values, [0.25, 0.5])
    worst = torch.tensor([[0.0, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0]])
    swaps = _Swaps(problem, (worst[:, None],))
    assert swaps.masks()[0].squeeze(1).tolist() == [
        [0, 0, 1, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 1, 0, 1],
    ]
    assert swaps.best.tolist() == [4, 7, 5, 8]


def test_rounds_try_every_single_channel_in_the_end():
    # The gradient says nothing of the best one: it is worth something only as a whole.
    worth = torch.linspace(1, 2, 60)
    worth[17] = 0

    def score(x):
        return (worth * x).sum(dim=1) + 5 * (x[:, 17] > 0.99)

    problem = problem_of(score, torch.ones(1, 60), [1 / 60])
    short = ChannelSolver(iterations=1, rounds=0).solve(problem).masks[0]
    assert int(short.argmax()) != 17
    full = ChannelSolver(iterations=1, rounds=6).solve(problem).masks[0]
    assert int(full.argmax()) == 17


def test_each_part_of_the_search_does_something():
    areas = [0.1, 0.3, 0.5]
    totals = {}
    for name, solver in {
        "start": ChannelSolver(iterations=1, rounds=0),
        "ascent": ChannelSolver(iterations=40, rounds=0),
        "swaps": ChannelSolver(iterations=1, rounds=8),
        "both": ChannelSolver(),
    }.items():
        total = 0.0
        for seed in range(6):
            model = network(seed, 40)
            problem = problem_of(
                lambda x, m=model: m(x)[:, 0], torch.rand(1, 40), areas
            )
            masks = solver.solve(problem).masks
            total += float(problem.rewards(masks, torch.arange(3)).sum())
        totals[name] = total
    assert totals["start"] < totals["ascent"] < totals["both"]
    assert totals["start"] < totals["swaps"]


def climb(score, areas, images):
    values = torch.ones(images, 16) / 4
    return _Climb(ChannelSolver(), problem_of(score, values, areas), 0)


def weighted(x):
    return x @ torch.arange(16.0)


def test_a_cell_takes_the_field_of_a_neighbour_that_is_better_for_it():
    with torch.no_grad():
        run = climb(weighted, (0.2, 0.11, 0.5), 2)
        ascent = run.ascent
        good = ascent.params[0].clone()
        ascent.params[0][1] = -good[1]  # image 0, area 0.11, whose larger one is 0.2
        ascent.params[0][5] = -good[5]  # image 1, area 0.5, whose only one is 0.2
        ascent.momentum[0][0] = 7.0
        run._exchange(run._binary_masks)
    assert torch.equal(ascent.params[0][1], good[0])
    assert torch.equal(ascent.params[0][5], good[3])
    assert (ascent.momentum[0][1] == 7).all()
    for cell in (0, 3, 4):
        assert torch.equal(ascent.params[0][cell], good[cell])


def test_fields_that_tie_stay_where_they_are():
    with torch.no_grad():
        run = climb(weighted, (0.1, 0.2), 1)
        before = run.ascent.params[0].clone()
        run.problem._score = lambda x, images: 1.0 + 1e-7 * x[0][:, 0, 0]
        run._exchange(run._binary_masks)
    assert torch.equal(run.ascent.params[0], before)


def test_cells_with_nothing_to_swap_end_the_rounds():
    problem = problem_of(lambda x: x.sum(1), torch.rand(1, 3), [1.0])
    told = []
    ChannelSolver(iterations=2, rounds=9).solve(problem, on_step=told.append)
    assert sum(told) == 2


def test_a_time_limit_ends_the_swaps():
    def slow(x):
        time.sleep(0.005)
        return x.sum(dim=1) + x.sin().sum(dim=1)

    problem = problem_of(slow, torch.rand(1, 400), [0.4], perturbations_per_eval=1)
    solver = ChannelSolver(iterations=1, rounds=10_000, time_limit=0.5)
    assert solver.solve(problem).ended == "time limit"


@pytest.mark.parametrize("solver", [ChannelSolver(), ChannelDescent()])
def test_positions_along_several_axes(solver):
    """Each pixel by itself, on either side of the picture."""
    worth = torch.zeros(4, 5)
    worth[0, 0], worth[3, 4], worth[1, 3] = 3.0, 2.0, 1.0
    method = ExtremalPerturbation(lambda x: (x[:, 0] * worth).sum((1, 2)), "fade")
    method.solver = solver
    result = method.optimize(torch.ones(1, 1, 4, 5), areas=[0.05, 0.1, 0.15])
    assert result.scores[0].tolist() == [3, 5, 6]
    assert set(result.masks.unique().tolist()) == {0.0, 1.0}


def literal_descent(weights, values, count, steps, rate, top, ramp):
    """Eq. 9 with Adam in float64: rewards and area losses of each step."""
    mask = np.ones(len(values))
    first, second = np.zeros_like(mask), np.zeros_like(mask)
    reference = np.sort(np.r_[np.ones(count), np.zeros(len(values) - count)])
    rewards, losses = [], []
    for step in range(steps):
        order = mask.argsort(kind="stable")
        error = np.empty_like(mask)
        error[order] = mask[order] - reference
        for value in np.unique(mask):  # tied values share the mean of their targets
            error[mask == value] = error[mask == value].mean()
        losses.append(((np.sort(mask) - reference) ** 2).mean())
        score = np.tanh(weights @ (mask * values))
        rewards.append(score)
        slope = (1 - score**2) * weights * values
        factor = top * min(1.0, step / (ramp * steps))
        gradient = factor * 2 * error / len(mask) - slope
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        ahead = first / (1 - 0.9 ** (step + 1))
        scale = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        mask = np.clip(mask - rate * ahead / scale, 0, 1)
    return rewards, losses, mask


def test_the_descent_is_that_of_the_paper():
    random = np.random.default_rng(0)
    weights, values = random.normal(size=12) / 3, random.uniform(0.5, 1, 12)
    steps, top, ramp = 60, 20.0, 0.5
    rewards, losses, mask = literal_descent(weights, values, 4, steps, 0.02, top, ramp)
    problem = problem_of(
        lambda x: torch.tanh(x @ torch.tensor(weights, dtype=torch.float32)),
        torch.tensor(values, dtype=torch.float32)[None],
        [4 / 12],
    )
    solver = ChannelDescent(steps, learning_rate=0.02, area_weight=top, ramp=ramp)
    found = solver.solve(problem)
    assert found.history["reward"][:, 0].tolist() == pytest.approx(rewards, abs=1e-4)
    assert found.history["area_loss"][:, 0].tolist() == pytest.approx(losses, abs=1e-4)
    kept = found.masks[0].flatten().nonzero().flatten().tolist()
    assert set(kept) == set(mask.argsort()[-4:].tolist())
