"""What every solver must do, each behaviour once, for all.

What is tested is the table of `tiny_solvers`; what is special to one solver stands in
the file of that solver.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
import warnings

import pytest
import torch

from captum_extremal import ExtremalPerturbation, FadePerturbation, Problem
from captum_extremal.solvers.driver import StepwiseSolver, stopping
from tiny_models import traces
from tiny_solvers import CASES, OTHER, SIZE, kept_of, problem_of, see, uneven

GAMES = ("preservation", "deletion", "hybrid")

each = pytest.mark.parametrize("case", CASES, ids=str)


def counts(masks):
    return (masks >= 0.5).flatten(1).sum(dim=1).tolist()


def asked(areas, pixels=1024):
    return [max(1, round(area * pixels)) for area in areas]


def same(case, one, other):
    if case.exact:
        assert torch.equal(one, other)
    torch.testing.assert_close(one, other)


# --- what it finds ---


@each
@pytest.mark.parametrize("game", GAMES)
def test_the_mask_is_what_the_model_sees(case, game):
    (mask,) = case.solve(game=game, clear=True).masks
    assert kept_of(mask) > case.shares[0]


@each
def test_a_larger_area_takes_the_second_disk_as_well(case):
    (mask,) = case.solve(areas=(0.2,), clear=True).masks
    assert kept_of(mask) > case.shares[0]
    assert kept_of(mask, OTHER) >= case.shares[1]


@each
def test_the_area_is_exact_for_every_area_at_once(case):
    areas = (0.004, 0.05, 0.37, 0.8, 1.0, 0.0001)
    (masks,) = case.solve(areas=areas).masks
    assert counts(masks) == asked(areas)
    assert masks.isfinite().all()
    assert masks.min() >= 0
    assert masks.max() <= 1


@each
@pytest.mark.parametrize(
    "size", [(64,), (200,), (10, 10), (5, 40), (9, 8, 7), (12, 14, 10), (1, 1), (2,)]
)
def test_signals_images_volumes_and_tiny_inputs(case, size):
    def first_half(x):
        return x[:, 0, : max(1, size[0] // 2)].flatten(1).mean(dim=1)

    areas, pixels = (0.15, 0.3), math.prod(size)
    (masks,) = case.solve(first_half, areas=areas, size=size, clear=True).masks
    assert counts(masks) == asked(areas, pixels)
    if pixels > 50:
        inside = torch.tensor(counts(masks[:, 0, : size[0] // 2]))
        assert (inside >= case.inside * torch.tensor(counts(masks))).all()


@each
def test_two_inputs_get_a_mask_each(case):
    sizes = SIZE, (20, 24)
    levels = tuple(FadePerturbation().levels(torch.ones(1, 1, *s)) for s in sizes)

    def score(x, _):
        return see(x[0]) + 8 * x[1][:, 0, 10:, 12:].mean(dim=(1, 2))

    first, second = case.solver.solve(Problem(score, levels, (0.2,))).masks
    assert kept_of(first) > case.inside - 0.1
    assert (second[0, 0, 10:, 12:] >= 0.5).float().mean() > case.inside - 0.3
    assert (counts(first), counts(second)) == ([205], [96])


@each
def test_a_model_without_say_gets_masks_of_the_area(case):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (masks,) = case.solve(lambda x: 0 * see(x), areas=(0.1, 0.3)).masks
    assert counts(masks) == asked((0.1, 0.3))
    assert masks.isfinite().all()
    told = [str(warning.message).split(":")[0] for warning in caught]
    text = "no step met a gradient for image 0 and area 0.1 and others"
    assert told == [text] * case.warns


@each
def test_scores_keep_the_precision_of_the_model(case):
    large = problem_of(lambda x: 1e8 + see(x.double()))
    reward = case.solver.solve(large).history["reward"]
    assert reward.dtype == torch.float64
    assert ((reward > 1e8) & (reward < 1e8 + 10.1)).all()


# --- what does not matter ---


def flipped(x):
    return see(x.flip(-1))


@each
def test_several_images_get_what_each_gets_alone(case):
    levels = FadePerturbation().levels(torch.ones(3, 1, *SIZE))

    def score(x, images):
        return torch.where(images == 1, flipped(x[0]), see(x[0]))

    (masks,) = case.solver.solve(Problem(score, (levels,), (0.05, 0.2))).masks
    for image, alone in enumerate((see, flipped, see)):
        expected = case.solve(alone, areas=(0.05, 0.2)).masks[0]
        same(case, masks[2 * image : 2 * image + 2], expected)


@each
@pytest.mark.parametrize("game", GAMES)
def test_the_size_of_a_forward_changes_nothing(case, game):
    seen = []

    def score(x):
        seen.append(len(x))
        return see(x)

    options = {"score": score, "areas": (0.05, 0.2), "images": 2, "game": game}
    expected = case.solve(**options).masks[0]
    for chunk in (1, 5, 64):
        seen.clear()
        same(case, case.solve(chunk=chunk, **options).masks[0], expected)
        assert max(seen) <= chunk


@each
def test_nothing_global_moves_or_matters(case):
    before = traces(see)
    expected = case.solve(areas=(0.07,)).masks[0]
    assert traces(see) == before
    torch.manual_seed(123)
    assert torch.equal(case.solve(areas=(0.07,)).masks[0], expected)


@each
def test_the_seed_is_the_only_source_of_chance(case):
    def found(seed, **changes):
        problem = problem_of(uneven, (0.07,))
        solution = case.made(**changes).solve(problem, seed)
        return solution.masks[0], solution.history["reward"]

    def equal(one, other):
        return all(map(torch.equal, one, other))

    assert equal(found(0), found(0))
    assert equal(found(0), found(1)) != case.solver.uses_seed
    if case.chance:
        assert equal(found(1, **case.chance), found(1, **case.chance))
        assert not equal(found(0, **case.chance), found(1, **case.chance))


# --- settings ---


@pytest.mark.parametrize(
    ("case", "option"),
    [(case, name) for case in CASES for name in case.changes],
    ids=str,
)
def test_every_option_changes_the_outcome(case, option):
    problem = problem_of(uneven, (0.1,))
    usual = case.solver.solve(problem)
    other = case.made(**{option: case.changes[option]}).solve(problem)
    steps = min(len(usual.history["reward"]), len(other.history["reward"]))
    ways = [[series[:steps] for series in it.history.values()] for it in (usual, other)]
    same_way = all(map(torch.equal, *ways))
    assert not (same_way and torch.equal(usual.masks[0], other.masks[0]))


POSITIVE = "time_limit must be positive and finite, got"
TIME_LIMITS = [("time_limit", at, f"{POSITIVE} {at}") for at in (0.0, -1)]


@pytest.mark.parametrize(
    ("case", "option", "value", "text"),
    [(case, *bad) for case in CASES for bad in (*case.refused, *TIME_LIMITS)],
    ids=str,
)
def test_settings_out_of_range_are_named(case, option, value, text):
    error = TypeError if "an int" in text or "True" in text else ValueError
    with pytest.raises(error, match=f"^{text}"):
        type(case.solver)(**{option: value})


# --- steps ---


@each
def test_steps_are_told_and_add_up(case):
    heard = []
    problem = problem_of(areas=(0.1, 0.2), images=2)
    solution = case.solver.solve(problem, on_step=heard.append)
    assert sum(heard) == case.solver.total_steps
    assert min(heard) > 0
    for series in solution.history.values():
        assert series.shape[1] == 4
        if case.solver.needs_gradient:  # a search without counts rounds
            assert (len(series), max(heard)) == (case.solver.iterations, 1)


@each
def test_the_budget_can_be_changed_and_may_be_one(case):
    solver = case.solver.with_steps(1)
    assert solver == case.made(**{case.solver.budget: 1})
    heard = []
    solution = solver.solve(problem_of(areas=(0.1, 1.0)), 0, heard.append)
    assert counts(solution.masks[0]) == asked((0.1, 1.0))
    assert sum(heard) == solver.total_steps
    assert solution.ended == "budget"
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        case.solver.with_steps(0)


# --- an early end ---


def long(case, **more):
    return dataclasses.replace(case.solver.with_steps(5000), **more)


@each
def test_a_time_limit_ends_the_search_with_exact_masks(case):
    def slow(x):
        time.sleep(0.01)
        return see(x)

    start = time.monotonic()
    areas = (0.1, 0.2)
    solution = long(case, time_limit=0.2).solve(problem_of(slow, areas))
    assert solution.ended == "time limit"
    assert time.monotonic() - start < 5
    assert counts(solution.masks[0]) == asked(areas)


@each
def test_the_first_step_is_made_in_any_case(case):
    heard = []
    solution = long(case, time_limit=1e-9).solve(problem_of(), 0, heard.append)
    assert (solution.ended, len(heard)) == ("time limit", 1)
    for series in solution.history.values():
        assert len(series) == 5000 or not case.solver.needs_gradient
        assert series[: heard[0]].isfinite().all()
        assert series[heard[0] :].isnan().all()
    assert counts(solution.masks[0]) == asked((0.11,))


def interrupted(calls):
    """`see`, with a Ctrl-C at the fortieth forward."""

    def score(x):
        calls.append(1)
        if len(calls) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return see(x)

    return score


@each
def test_ctrl_c_keeps_what_was_found(case, pythons_own_handler):
    calls = []
    solution = long(case).solve(problem_of(interrupted(calls)))
    assert solution.ended == "interrupt"
    assert len(calls) < 120
    assert counts(solution.masks[0]) == asked((0.11,))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@each
def test_ctrl_c_stops_a_loop_and_the_masks_are_in_the_exception(
    case, pythons_own_handler
):
    calls = []
    method = ExtremalPerturbation(interrupted(calls), "fade", long(case))

    def loop():
        for _ in range(3):
            method.attribute(torch.ones(1, 1, *SIZE), areas=[0.11])

    with pytest.raises(KeyboardInterrupt) as caught:
        loop()
    assert len(calls) < 120
    result = caught.value.result
    assert int((result.masks >= 0.5).sum()) == round(0.11 * 1024)
    assert result.settings["ended"] == "interrupt"


def interrupt_twice():
    with stopping(None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert stop.ended == "interrupt"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_second_ctrl_c_interrupts_as_usual(pythons_own_handler):
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_threads_have_their_time_limit_alone():
    found = []

    def work():
        with stopping(0.05) as stop:
            found.append(stop())
            time.sleep(0.1)
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, True]


# --- models that cannot be searched ---


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [0, 12])
def test_a_score_that_is_not_finite_is_named(case, bad, first):
    calls = []
    levels = FadePerturbation().levels(torch.ones(2, 1, *SIZE))

    def score(x, images):
        calls.append(1)
        spoiled = (images == 1) & (len(calls) > first)
        return torch.where(spoiled, bad, see(x[0]))

    text = rf"must give finite scores, got (nan|-?inf){case.when} for image 1 and area"
    with pytest.raises(RuntimeError, match=rf"{text} 0\.7$"):
        case.solver.solve(Problem(score, (levels,), (0.7,)))


class NoGradient(torch.autograd.Function):
    """Hands on what it is given, and nothing that could be used on the way back."""

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient * math.nan


@each
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            lambda x: see(x.detach()),
            r"no gradient reaches .*SearchSolver\(\) needs none",
        ),
        (
            lambda x: see(NoGradient.apply(x).nan_to_num(0.0)),
            "must have finite gradients, got NaN with",
        ),
    ],
    ids=["cut", "nan"],
)
def test_gradients_are_an_error_of_those_that_need_them(case, model, text):
    for solver in (case.solver, case.solver.with_steps(1)):
        if case.solver.needs_gradient:
            with pytest.raises(RuntimeError, match=text):
                solver.solve(problem_of(model))
        else:
            assert counts(solver.solve(problem_of(model)).masks[0]) == asked((0.11,))


def test_a_search_of_ones_own_has_to_say_how_it_starts():
    with pytest.raises(NotImplementedError):
        StepwiseSolver().start(problem_of(), 0)
