"""A search from several seeds: the best is delivered, and how far they agree."""

from __future__ import annotations

import dataclasses
import signal
from itertools import pairwise

import pytest
import torch

from captum_extremal import (
    ChannelExtremalPerturbation,
    ExtremalPerturbation,
    ExtremalResult,
    GradientSolver,
    LevelSetSolver,
    Restarts,
    SearchInterrupted,
    SearchSolver,
    Solution,
    Stability,
    SwapSolver,
)
from captum_extremal.visualization import plot_result
from tiny_solvers import problem_of, see

AREAS = (0.05, 0.2)
QUICK = SearchSolver(evaluations=12)


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Keeps as many of the first pixels as the run that it is says."""

    places: tuple[int, ...]
    ends: tuple[str, ...] = ("budget",) * 9
    ranks: bool = True

    total_steps = 1

    def __post_init__(self):
        object.__setattr__(self, "seeds", [])

    def solve(self, problem, seed=0, on_step=None):
        which = len(self.seeds)
        self.seeds.append(seed)
        masks = torch.zeros(problem.num_cells, 1, 8)
        for cell in range(problem.num_cells):
            start = (self.places[which] + cell) % 8
            masks[cell, 0, start : start + 1] = 1
        if on_step is not None:
            on_step(1)
        history = {"reward": torch.full((which + 1, problem.num_cells), float(which))}
        ranking = None
        if self.ranks:
            first = torch.zeros(problem.num_images, 1, 8)
            first[..., self.places[which]] = 1
            ranking = (first,)
        return Solution((masks,), history, self.ends[which], ranking)


def ramp(x):
    """Worth the most at place 5."""
    weights = torch.tensor([0.0, 1, 2, 3, 4, 9, 6, 5])
    return (x[:, 0] * weights).sum(dim=1)


def method_of(solver, model=ramp):
    return ExtremalPerturbation(model, "fade", solver)


def test_of_each_mask_the_best_run_is_delivered():
    solver = Restarts(Scripted((2, 5, 4)))
    result = method_of(solver).optimize(torch.ones(1, 1, 8), areas=[1 / 8, 1 / 8])
    # Cells look one place further: 2 3, 5 6, 4 5.
    assert result.stability.scores.tolist() == [[[2, 3]], [[9, 6]], [[4, 9]]]
    assert result.scores.tolist() == [[9, 9]]
    assert result.masks.flatten(2).argmax(dim=2).tolist() == [[5, 5]]
    # Each with the series of its own run; a shorter one is filled up.
    rewards = result.history["reward"][0]
    assert rewards[0, :2].tolist() == [1, 1]
    assert rewards[0, 2].isnan()
    assert rewards[1].tolist() == [2, 2, 2]
    # The ranking is that of the run whose own first places are worth the most.
    assert result.ranking.argmax() == 5


def test_together_all_masks_of_an_image_come_from_one_run():
    solver = Restarts(Scripted((2, 4, 5)), together=True)
    result = method_of(solver).optimize(torch.ones(1, 1, 8), areas=[1 / 8, 1 / 8])
    assert result.scores.tolist() == [[9, 6]]
    without = Restarts(Scripted((2, 4, 5), ranks=False), together=True)
    result = method_of(without).optimize(torch.ones(1, 1, 8), areas=[1 / 8, 1 / 8])
    assert result.scores.tolist() == [[9, 6]]


def test_runs_have_seeds_of_their_own_and_the_first_is_the_plain_one():
    once, again = Scripted((0, 0, 0)), Scripted((0, 0, 0))
    Restarts(once).solve(problem_of(ramp, size=(8,)), seed=7)
    Restarts(again).solve(problem_of(ramp, size=(8,)), seed=8)
    assert once.seeds[0] == 7
    assert len({*once.seeds, *again.seeds}) == 6
    plain = QUICK.solve(problem_of(areas=AREAS), 3).masks[0]
    several = Restarts(QUICK, 2).solve(problem_of(areas=AREAS), 3)
    assert torch.equal(plain, several.runs[0][0])
    assert not torch.equal(plain, several.runs[1][0])


def test_no_run_scores_higher_than_what_is_delivered():
    result = method_of(Restarts(QUICK), see).optimize(torch.ones(2, 1, 32, 32))
    assert (result.scores >= result.stability.scores).all()
    assert (result.scores == result.stability.scores.amax(dim=0)).all()


def test_stability_counts_what_it_says():
    masks = [torch.zeros(1, 1, 1, 8) for _ in range(3)]
    masks[0][..., :4] = masks[1][..., 2:6] = masks[2][..., 2:6] = 1
    scores = torch.tensor([[[1.0]], [[3.0]], [[3.0]]])
    found = Stability.of([(m,) for m in masks], [0.5], scores, torch.tensor([2.0]))
    third = 1 / 3  # 2 of 6 pixels, twice; and all, once
    assert found.overlap.item() == pytest.approx((2 * third + 1) / 3)
    assert found.a_star.isnan().tolist() == [[True], [False], [False]]
    assert found.same_a_star().item() == pytest.approx(third)
    assert found.deviation().item() == pytest.approx(scores.std().item())


def test_where_no_area_suffices_in_any_run_they_agree():
    missing = torch.full((2, 1), torch.nan)
    found = Stability(torch.ones(2, 1, 1), torch.ones(1, 1), missing)
    assert found.same_a_star().tolist() == [1]


def test_one_run_agrees_with_nobody():
    result = method_of(Restarts(QUICK, 1), see).optimize(torch.ones(1, 1, 32, 32))
    stability = result.stability
    assert stability.overlap.isnan().all()
    assert stability.deviation().isnan().all()
    assert stability.same_a_star().isnan().all()
    plain = method_of(QUICK, see).optimize(torch.ones(1, 1, 32, 32))
    assert plain.stability is None
    assert torch.equal(plain.masks, result.masks)


def test_it_is_saved_and_drawn(tmp_path):
    x = torch.rand(1, 1, 32, 32)
    result = method_of(Restarts(QUICK, 2), see).optimize(x, areas=AREAS)
    result.save(tmp_path / "result.safetensors")
    loaded = ExtremalResult.load(tmp_path / "result.safetensors").stability
    for name in ("scores", "overlap", "a_star"):
        one, other = getattr(result.stability, name), getattr(loaded, name)
        torch.testing.assert_close(one, other, equal_nan=True)
    told = f"2 runs overlap by {100 * loaded.overlap[0, 0]:.0f} %"
    figure = plot_result(x[0], result)
    assert any(told in axes.get_xlabel() for axes in figure.axes)
    *_, curve = figure.axes
    assert "all 2 runs" in [text.get_text() for text in curve.get_legend().texts]
    page = result.to_html(images=x)
    assert page.count('class="runs"') == 2
    assert told in page
    plain = dataclasses.replace(result, stability=None).to_html(images=x)
    assert 'class="runs"' not in plain
    assert "overlap" not in plain


def test_channels_too():
    layer = torch.nn.Identity()

    def model(x):
        return layer(x) @ torch.tensor([1.0, 5, 2, 4])

    solver = Restarts(SwapSolver(iterations=4), 2)
    method = ChannelExtremalPerturbation(model, layer, solver=solver)
    result = method.optimize(torch.ones(1, 4), areas=[1, 2])
    assert result.scores.tolist() == [[5, 9]]
    assert result.stability.scores.shape == (2, 1, 2)
    assert result.curve().overlaps == [1, 1]


def test_a_ranking_is_that_of_one_run():
    solver = Restarts(LevelSetSolver(iterations=6), 2)
    x = torch.ones(1, 1, 32, 32)
    result = method_of(solver, see).optimize(x, areas=None)
    masks = result.masks[0, :, 0] >= 0.5
    assert all((b | ~a).all() for a, b in pairwise(masks))
    for place in (3, 9):
        cut = result.mask_at(result.areas[place]) >= 0.5
        assert torch.equal(cut[0, 0], masks[place])
    with pytest.raises(ValueError, match="areas must be given"):
        method_of(Restarts(Scripted(())), see).optimize(x, areas=None)


@pytest.mark.parametrize(
    "solver", [LevelSetSolver(iterations=6), SearchSolver(20)], ids=["ascent", "search"]
)
def test_attribute_and_optimize_agree_on_the_ranking(solver):
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        method = method_of(Restarts(solver, 3), see)
        ranking = method.attribute(x, areas=None, seed=seed)
        result = method.optimize(x, areas=None, seed=seed)
        assert torch.equal(ranking, result.ranking)


def test_what_ended_any_run_is_told():
    ends = ("time limit", "time limit", "budget")
    solver = Restarts(Scripted((1, 2, 3), ends))
    result = method_of(solver).optimize(torch.ones(1, 1, 8), areas=1 / 8)
    assert result.settings["ended"] == "time limit"


def test_a_run_that_was_broken_off_says_nothing_of_stability():
    ends = ("budget", "interrupt")
    problem = problem_of(ramp, (1 / 8,), size=(8,))
    solution = Restarts(Scripted((1, 5), ends)).solve(problem)
    assert solution.masks[0].argmax() == 5  # but it may be the best
    assert [int(masks[0].argmax()) for masks in solution.runs] == [1]


def test_the_ranking_does_not_depend_on_the_areas():
    method = method_of(Restarts(LevelSetSolver(iterations=6), 3), see)
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    one, other = (method.optimize(x, areas=a).ranking for a in ([0.05, 0.1], [0.4]))
    assert torch.equal(one, other)


@pytest.mark.usefixtures("pythons_own_handler")
def test_ctrl_c_ends_all_runs_and_keeps_the_best():
    rounds = []

    def impatient(x):
        rounds.append(None)
        if len(rounds) == 8:
            signal.raise_signal(signal.SIGINT)
        return see(x)

    method = method_of(Restarts(SearchSolver(200), 3), impatient)
    with pytest.raises(SearchInterrupted) as caught:
        method.optimize(torch.ones(1, 1, 32, 32), areas=0.1)
    assert len(rounds) < 20
    assert len(caught.value.result.stability.scores) == 1  # of the one that began
    assert caught.value.result.settings["ended"] == "interrupt"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((None,), TypeError, "solver must be an object with a solve method"),
        ((SearchSolver,), TypeError, "solver must be a solver, got a class"),
        ((SearchSolver(), 0), ValueError, "runs must be at least 1, got 0"),
        ((SearchSolver(), 1.5), TypeError, "runs must be"),
        ((SearchSolver(), 2, 1), TypeError, "together must be True or False, got 1"),
        ((GradientSolver(),), ValueError, "solver must use its seed, got GradientSol"),
    ],
)
def test_bad_settings(arguments, error, words):
    with pytest.raises(error, match=words):
        Restarts(*arguments)


def test_it_passes_on_what_its_solver_needs():
    assert Restarts(LevelSetSolver()).needs_gradient
    assert not Restarts(SearchSolver()).needs_gradient
    assert Restarts(SearchSolver(50), 4).total_steps == 200
