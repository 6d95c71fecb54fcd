"""The ascent on a field: what it finds, what it costs, what its options change."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time

import pytest
import torch

from captum_extremal import (
    ExtremalPerturbation,
    FadePerturbation,
    GradientSolver,
    LevelSetSolver,
    Problem,
    SearchSolver,
)
from captum_extremal.solvers.anytime import stopping
from captum_extremal.solvers.level_set import Ascent
from captum_extremal.solvers.views import copy_of

SIZE = (32, 32)
rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
OBJECT = (rows - 10) ** 2 + (columns - 20) ** 2 <= 36  # 113 pixels, 11 %
OTHER = (rows - 24) ** 2 + (columns - 6) ** 2 <= 16
FAST = LevelSetSolver(iterations=24)
EXACT = dataclasses.replace(FAST, jitter=0.0, edge=0.0)


def see(x):
    """A model that sees one large disk, and a smaller one less for each pixel."""
    return 8 * x[:, 0, OBJECT].mean(dim=1) + 2 * x[:, 0, OTHER].mean(dim=1)


def problem_of(
    score=see, areas=(0.11,), game="preservation", images=1, chunk=16, size=SIZE
):
    levels = FadePerturbation().levels(torch.ones(images, 1, *size))
    return Problem(lambda x, _: score(x[0]), (levels,), areas, game, chunk)


def solve(settings=EXACT, seed=0, **options):
    return settings.solve(problem_of(**options), seed)


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_the_mask_is_what_the_model_sees(game):
    (mask,) = solve(game=game).masks
    kept = mask[0, 0] >= 0.5
    assert (kept & OBJECT).sum() / OBJECT.sum() > 0.95


def test_a_larger_area_takes_the_second_disk_as_well():
    (mask,) = solve(areas=(0.2,)).masks
    kept = mask[0, 0] >= 0.5
    assert (kept & OBJECT).sum() / OBJECT.sum() > 0.95
    assert (kept & OTHER).sum() / OTHER.sum() > 0.9


def test_the_area_is_exact_for_every_area_at_once():
    areas = (0.004, 0.05, 0.37, 0.8, 1.0, 0.0001)
    (masks,) = solve(FAST, areas=areas).masks
    counts = (masks >= 0.5).flatten(1).sum(dim=1).tolist()
    assert counts == [max(1, round(area * 1024)) for area in areas]
    assert masks.isfinite().all()
    assert masks.min() >= 0
    assert masks.max() <= 1


@pytest.mark.parametrize("size", [(64,), (10, 10), (5, 40), (9, 8, 7), (1, 1), (2,)])
def test_signals_images_volumes_and_tiny_inputs(size):
    def first_half(x):
        side = max(1, size[0] // 2)
        return x[:, 0, :side].flatten(1).mean(dim=1)

    pixels = math.prod(size)
    areas = (0.15, 0.3)
    solution = EXACT.solve(problem_of(first_half, areas, size=size), 0)
    kept = solution.masks[0] >= 0.5
    wanted = [max(1, round(area * pixels)) for area in areas]
    assert kept.flatten(1).sum(dim=1).tolist() == wanted
    if pixels > 50:
        inside = kept[:, 0, : size[0] // 2].flatten(1).sum(dim=1)
        assert (inside >= 0.9 * kept.flatten(1).sum(dim=1)).all()


def test_the_mask_is_smooth_by_the_guarantee():
    edge = 0.1  # 3.2 pixels
    settings = dataclasses.replace(FAST, edge=edge)
    (masks,) = solve(settings, areas=(0.05, 0.3)).masks
    bound = math.pi / (4 * edge * 32)
    assert masks.diff(dim=2).abs().max() <= bound + 1e-6
    assert masks.diff(dim=3).abs().max() <= bound + 1e-6


@pytest.mark.parametrize(
    ("areas", "mirror", "compared"),
    [((0.1,), True, 2), ((0.1, 0.2), True, 4), ((0.1, 0.2, 0.3), False, 7 / 3)],
)
def test_the_cost_is_as_documented(areas, mirror, compared):
    seen = {True: 0, False: 0}

    def score(x):
        seen[x.requires_grad] += len(x)
        return see(x)

    heard = []
    solver = LevelSetSolver(iterations=12, mirror=mirror)
    solver.solve(problem_of(score, areas, images=2), 0, heard.append)
    copies = 2 if mirror else 1
    assert seen[True] == 2 * (12 * len(areas) + 4 * copies)
    assert seen[False] == round(2 * 4 * compared * len(areas))
    assert sum(heard) == 12 == solver.total_steps


def test_the_seed_is_the_only_source_of_chance():
    first, again, other = (
        solve(FAST, seed, areas=(0.07,)).history["reward"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_gives_what_its_images_give():
    both = solve(FAST, images=2, areas=(0.05, 0.2)).masks[0]
    one = solve(FAST, images=1, areas=(0.05, 0.2)).masks[0]
    assert torch.equal(both[:2], one)
    assert torch.equal(both[2:], one)


def test_chunks_change_nothing():
    whole, parts = (
        solve(FAST, areas=(0.05, 0.2), chunk=chunk).masks[0] for chunk in (64, 1)
    )
    assert torch.equal(whole, parts)


def test_a_cell_takes_the_field_of_a_neighbour_that_is_better_for_it():
    ascent = Ascent(EXACT, problem_of(areas=(0.2, 0.11, 0.5), images=2), 0)
    ascent._start()
    (params,) = ascent.params
    good = params.clone()
    params[1] = -good[1]  # image 0, area 0.11, whose larger neighbour is 0.2
    params[5] = -good[5]  # image 1, area 0.5, whose only neighbour is 0.2
    ascent.momentum[0][0] = 7.0
    ascent._exchange(ascent._delivered_masks)
    assert torch.equal(ascent.params[0][1], good[0])
    assert torch.equal(ascent.params[0][5], good[3])
    assert (ascent.momentum[0][1] == 7).all()
    for cell in (0, 3, 4):
        assert torch.equal(ascent.params[0][cell], good[cell])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("iterations", 6),
        ("learning_rate", 0.1),
        ("edge", 0.1),
        ("softness", (0.6, 0.5)),
        ("mask_step", 4),
        ("mirror", True),
        ("jitter", 0.0),
    ],
)
def test_every_option_changes_the_masks(option, value):
    def uneven(x):
        return (x[:, 0] * (rows + 0.3 * columns)).square().mean(dim=(1, 2)).sqrt()

    changed = dataclasses.replace(FAST, **{option: value})
    usual = solve(FAST, score=uneven, areas=(0.1,))
    other = solve(changed, score=uneven, areas=(0.1,))
    same_masks = torch.equal(usual.masks[0], other.masks[0])
    same_way = torch.equal(usual.history["reward"][:6], other.history["reward"][:6])
    assert not (same_masks and same_way)


def test_a_model_without_say_gets_a_mask_and_a_word():
    def blind(x):
        return 0 * x.sum(dim=(1, 2, 3))

    with pytest.warns(UserWarning, match="no step met a gradient for image 0 and area"):
        (mask,) = solve(FAST, score=blind, areas=(0.3,)).masks
    assert int((mask >= 0.5).sum()) == round(0.3 * 1024)


def test_a_model_that_is_blind_to_uniform_masks_is_searched_from_a_random_start():
    # At a uniform mask the gradient of a squared difference is zero.
    def contrast(x):
        halves = x[:, 0, :16].mean(dim=(1, 2)) - x[:, 0, 16:].mean(dim=(1, 2))
        return halves.square()

    solution = solve(FAST, score=contrast, areas=(0.5,))
    assert float(contrast(solution.masks[0])) > 0.8


def test_thin_objects_survive_the_jitter():
    # Narrower than 7 % of a side: shifts of that size would hide them.
    thin = torch.zeros(2000)
    thin[500:530] = 1

    def line(x):
        return (x * thin).flatten(1).sum(dim=1) / 30

    def square(x):
        return x[:, 0, 20:28, 20:28].flatten(1).mean(dim=1)

    found = LevelSetSolver().solve(problem_of(line, (0.015,), size=(2000,)), 0)
    assert float(line(found.masks[0])) > 0.6  # 0.658 at best, with this soft edge
    found = LevelSetSolver().solve(problem_of(square, (64 / 112**2,), size=(112, 112)))
    assert float(square(found.masks[0])) > 0.75


def test_scores_of_any_magnitude_give_the_same_mask():
    def scaled(factor):
        (mask,) = solve(score=lambda x: factor * see(x), areas=(0.15,)).masks
        return float(see(mask))

    usual = scaled(1.0)
    for factor in (1e-30, 1e-19, 1e25):
        assert scaled(factor) == pytest.approx(usual, rel=0.02)


def test_fields_that_tie_stay_where_they_are():
    ascent = Ascent(EXACT, problem_of(areas=(0.1, 0.2)), 0)
    ascent._start()
    before = ascent.params[0].clone()
    ascent.problem._score = lambda x, images: 1.0 + 1e-7 * x[0][:, 0, 0, 0]
    ascent._exchange(ascent._delivered_masks)
    assert torch.equal(ascent.params[0], before)


def test_autocast_around_the_search():
    method = ExtremalPerturbation(see, "fade", EXACT)
    inputs = torch.ones(1, 1, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        result = method.optimize(inputs, areas=[0.11])
    assert float(see(result.masks[0])) > 7


def test_all_of_the_input_beside_other_areas():
    def uneven(x):
        return (x[:, 0] * (rows + 0.3 * columns)).square().mean(dim=(1, 2))

    (masks,) = solve(FAST, score=uneven, areas=(1.0, 0.2), seed=3).masks
    assert (masks[0] == 1).all()
    assert int((masks[1] >= 0.5).sum()) == round(0.2 * 1024)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("iterations", 0, "iterations must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be positive and finite, got 0.0"),
        ("edge", -1.0, "edge must be finite and at least 0, got -1.0"),
        ("jitter", 0.6, r"jitter must lie in \[0, 0.5\], got 0.6"),
        ("softness", (2.0, 0.1), r"softness must lie in \(0, 1\], got 2.0"),
        ("softness", 0.1, "softness must be a pair of numbers"),
        ("mask_step", 0, "mask_step must be at least 1, got 0"),
        ("time_limit", 0.0, "time_limit must be positive and finite, got 0.0"),
    ],
)
def test_bad_settings(option, value, text):
    with pytest.raises(ValueError, match=text):
        LevelSetSolver(**{option: value})


def test_a_score_that_is_not_finite_is_named():
    calls = []

    def breaks(x):
        calls.append(1)
        return see(x) * (torch.nan if len(calls) > 12 else 1)

    with pytest.raises(RuntimeError, match="must give finite scores, got nan"):
        solve(score=breaks)


def test_a_black_box_is_told_of_the_other_solver():
    method = ExtremalPerturbation(lambda x: see(x.detach()), "fade")
    with pytest.raises(RuntimeError, match=r"SearchSolver\(\) needs none"):
        method.attribute(torch.ones(1, 1, *SIZE))


# --- an early end ---


@pytest.fixture
def pythons_own_handler():
    """Where the tests run in the background, Ctrl-C may be switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


SOLVERS = [
    LevelSetSolver(iterations=500),
    GradientSolver(iterations=500, tolerance=0.0, mask_step=2),
    SearchSolver(evaluations=5000),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_time_limit_ends_the_search_with_exact_masks(solver):
    def slow(x):
        time.sleep(0.01)
        return see(x)

    start = time.monotonic()
    limited = dataclasses.replace(solver, time_limit=0.3)
    solution = limited.solve(problem_of(slow), 0)
    (mask,) = solution.masks
    assert solution.ended == "time limit"
    assert time.monotonic() - start < 5
    assert int((mask >= 0.5).sum()) == round(0.11 * 1024)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_ctrl_c_keeps_what_was_found(solver, pythons_own_handler):
    calls = []

    def interrupted(x):
        calls.append(1)
        if len(calls) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return see(x)

    solution = solver.solve(problem_of(interrupted), 0)
    (mask,) = solution.masks
    assert solution.ended == "interrupt"
    assert len(calls) < 120
    assert int((mask >= 0.5).sum()) == round(0.11 * 1024)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def interrupt_twice():
    with stopping(None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert stop.ended == "interrupt"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_ctrl_c_stops_a_loop_and_the_masks_are_in_the_exception(pythons_own_handler):
    calls = []

    def interrupted(x):
        calls.append(1)
        if len(calls) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return see(x)

    method = ExtremalPerturbation(interrupted, "fade", LevelSetSolver(iterations=500))

    def loop():
        for _ in range(3):
            method.attribute(torch.ones(1, 1, *SIZE), areas=[0.11])

    with pytest.raises(KeyboardInterrupt) as caught:
        loop()
    assert len(calls) < 80
    result = caught.value.result
    assert int((result.masks >= 0.5).sum()) == round(0.11 * 1024)
    assert result.settings["ended"] == "interrupt"


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


# --- what the model is shown ---


@pytest.mark.parametrize("shape", [(2, 3, 11), (2, 1, 6, 9), (1, 2, 4, 5, 6)])
@pytest.mark.parametrize("share", [0.0, 0.2, -0.4, 0.5])
def test_shifted_copies_enter_again_at_the_other_border(shape, share):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shown = copy_of(False, [share] * 3)(inputs)
    expected = inputs
    for axis in range(2, inputs.dim()):
        side = inputs.shape[axis]
        places = (torch.arange(side) - round(share * side)) % side
        expected = expected.index_select(axis, places)
    assert torch.equal(shown, expected)


def test_mirrored_copies_are_for_images_alone():
    for shape in [(1, 1, 5), (1, 1, 3, 5), (1, 1, 2, 3, 5)]:
        inputs = torch.randn(shape)
        expected = inputs.flip(-1) if len(shape) == 4 else inputs
        assert torch.equal(copy_of(True, ())(inputs), expected)


def test_copies_pass_the_gradient_back_to_where_it_came_from():
    inputs = torch.randn(1, 1, 6, 7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(copy_of(True, [0.3, -0.3]), (inputs,))
