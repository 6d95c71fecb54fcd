"""The ascent on a field: where it starts, what it costs, what the model is shown."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    LevelSetSolver,
    Problem,
)
from captum_extremal.masks.fields import Field
from captum_extremal.perturbations import apply
from captum_extremal.perturbations import levels as levels_module
from captum_extremal.solvers import level_set
from captum_extremal.solvers import problem as problem_module
from captum_extremal.solvers.level_set import Ascent
from captum_extremal.solvers.start import start
from captum_extremal.solvers.views import Copy
from tiny_solvers import SIZE, problem_of, see, uneven

FAST = LevelSetSolver(iterations=24)
EXACT = dataclasses.replace(FAST, jitter=0.0, edge=0.0)


def solve(settings=EXACT, seed=0, **options):
    return settings.solve(problem_of(**options), seed)


def test_the_mask_is_smooth_by_the_guarantee():
    edge = 0.1  # 3.2 pixels
    settings = dataclasses.replace(FAST, edge=edge)
    (masks,) = solve(settings, areas=(0.05, 0.3)).masks
    bound = math.pi / (4 * edge * 32)
    assert masks.diff(dim=2).abs().max() <= bound + 1e-6
    assert masks.diff(dim=3).abs().max() <= bound + 1e-6


@pytest.mark.parametrize(
    ("areas", "mirror", "start", "compared"),
    [
        ((0.1,), True, 8, 0),
        ((0.1, 0.2), True, 8, 12),  # compared is the plain input alone
        ((0.1, 0.2), None, 8, 12),  # the model looks at one side
        ((0.1, 0.2, 0.3), False, 4, 21),
    ],
)
def test_the_cost_is_as_documented(areas, mirror, start, compared):
    seen = {True: 0, False: 0}

    def score(x):
        seen[x.requires_grad] += len(x)
        return see(x)

    heard = []
    solver = LevelSetSolver(iterations=12, mirror=mirror)
    solver.solve(problem_of(score, areas, images=2), 0, heard.append)
    assert seen[True] == 2 * (12 * len(areas) + start)
    assert seen[False] == 2 * compared
    assert sum(heard) == 12 == solver.total_steps


def test_a_cell_takes_the_field_of_a_neighbour_that_is_better_for_it():
    ascent = Ascent(EXACT, problem_of(areas=(0.2, 0.11, 0.5), images=2), 0)
    (params,) = ascent.params
    good = params.clone()
    params[1] = -good[1]  # image 0, area 0.11, whose larger neighbour is 0.2
    params[5] = -good[5]  # image 1, area 0.5, whose only neighbour is 0.2
    ascent.momentum[0][0] = 7.0
    ascent._exchange(ascent._delivered_masks, ascent.problem.areas)
    assert torch.equal(ascent.params[0][1], good[0])
    assert torch.equal(ascent.params[0][5], good[3])
    assert (ascent.momentum[0][1] == 7).all()
    for cell in (0, 3, 4):
        assert torch.equal(ascent.params[0][cell], good[cell])


def test_a_model_that_is_blind_to_uniform_masks_is_searched_from_a_random_start():
    # At a uniform mask the gradient of a squared difference is zero.
    def contrast(x):
        halves = x[:, 0, :16].mean(dim=(1, 2)) - x[:, 0, 16:].mean(dim=(1, 2))
        return halves.square()

    solution = solve(FAST, score=contrast, areas=(0.5,))
    assert float(contrast(solution.masks[0])) > 0.8


def test_blurred_remains_do_not_stand_in_for_a_large_object():
    image = torch.zeros(1, 1, *SIZE)
    image[..., 4:20, 4:28] = 1  # so large that its middle is as bright when blurred
    image[..., 24:31, 1:8] = 1

    def score(x):
        middle, spot = x[:, 0, 8:16, 10:22], x[:, 0, 24:31, 1:8]
        return middle.mean(dim=(1, 2)) + 0.3 * spot.mean(dim=(1, 2))

    def share_on_the_object(**options):
        solver = dataclasses.replace(EXACT, iterations=40, **options)
        method = ExtremalPerturbation(score, BlurPerturbation(sigma_max=3), solver)
        kept = method.attribute(image, areas=0.05)[0, 0] >= 0.5
        return float(kept[4:20].float().sum() / kept.sum())

    assert share_on_the_object(flat_background=False) < 0.3
    assert share_on_the_object() > 0.7


def test_areas_shrink_to_the_asked_ones():
    solver = dataclasses.replace(FAST, iterations=21, first_area=0.5)
    ascent = Ascent(solver, problem_of(areas=(0.02, 0.5, 0.7)), 0)
    assert ascent._areas(0) == [0.5, 0.5, 0.7]
    assert ascent._areas(7) == pytest.approx([0.1, 0.5, 0.7])
    assert ascent._areas(14) == pytest.approx([0.02, 0.5, 0.7])
    assert ascent._areas(20) == pytest.approx([0.02, 0.5, 0.7])
    at_once = dataclasses.replace(solver, first_area=0)
    assert Ascent(at_once, problem_of(areas=(0.02,)), 0)._areas(0) == [0.02]


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
    before = ascent.params[0].clone()
    ascent.problem._score = lambda x, images: 1.0 + 1e-7 * x[0][:, 0, 0, 0]
    ascent._exchange(ascent._delivered_masks, ascent.problem.areas)
    assert torch.equal(ascent.params[0], before)


def test_autocast_around_the_search():
    method = ExtremalPerturbation(see, "fade", EXACT)
    inputs = torch.ones(1, 1, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        result = method.optimize(inputs, areas=[0.11])
    assert float(see(result.masks[0])) > 7


def test_all_of_the_input_beside_other_areas():
    (masks,) = solve(FAST, score=uneven, areas=(1.0, 0.2), seed=3).masks
    assert (masks[0] == 1).all()
    assert int((masks[1] >= 0.5).sum()) == round(0.2 * 1024)


def contrast(x):
    """The same in the mirror."""
    return (x[:, 0].diff(dim=1).square()).mean(dim=(1, 2))


def left(x):
    return x[:, 0, :, :16].mean(dim=(1, 2))


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def blurred_problem(score, *inputs, areas=(0.11,), **options):
    levels = tuple(BlurPerturbation(sigma_max=2).levels(each) for each in inputs)
    return Problem(score, levels, areas, **options)


def mirrored(problem, mirror=None):
    """Of each tensor which images are shown mirrored as well."""
    fields = [Field(size, None, problem.device) for size in problem.sizes]
    with torch.no_grad():
        return [flags.tolist() for flags in start(problem, fields, mirror).mirrored]


def test_a_mirror_image_serves_where_the_model_looks_at_the_same_places_in_it():
    images = noise(2, 1, *SIZE)
    both = blurred_problem(lambda x, _: contrast(x[0]), images)
    assert mirrored(both) == [[True, True]]
    neither = blurred_problem(lambda x, _: left(x[0]), images)
    assert mirrored(neither) == [[False, False]]
    assert mirrored(neither, True) == [[True, True]]
    assert mirrored(both, False) == [[False, False]]

    def either(x, images):
        return torch.where(images == 0, left(x[0]), contrast(x[0]))

    assert mirrored(blurred_problem(either, images)) == [[False, True]]


def test_signals_and_volumes_have_no_say_about_the_mirror():
    def score(x, _):
        return left(x[0]) + 5 * x[1].flatten(1).mean(dim=1)

    problem = blurred_problem(score, noise(1, 1, *SIZE), noise(1, 1, 16, 16, 16))
    assert mirrored(problem) == [[False], [False]]


def test_each_tensor_decides_for_itself():
    def score(x, _):
        return left(x[0]) + 50 * contrast(x[1]) + x[2].flatten(1).mean(dim=1)

    tensors = (noise(1, 1, *SIZE), noise(1, 1, 24, 30), noise(1, 1, 12, 90))
    problem = blurred_problem(score, *tensors)
    assert mirrored(problem) == [[False], [True], [False]]


def test_images_of_which_some_have_a_mirror_image_give_what_each_gives():
    images = noise(2, 1, *SIZE)
    solver = dataclasses.replace(FAST, iterations=8)

    def either(x, images):
        return torch.where(images == 0, left(x[0]), contrast(x[0]))

    areas = (0.1, 0.2)
    (both,) = solver.solve(blurred_problem(either, images, areas=areas)).masks
    for place, score in enumerate((left, contrast)):
        alone = blurred_problem(
            lambda x, _, s=score: s(x[0]), images[place : place + 1], areas=areas
        )
        (one,) = solver.solve(alone).masks
        assert torch.equal(both[2 * place : 2 * place + 2], one)


def test_steps_show_each_background_plain_and_mirrored_in_turn():
    image = torch.zeros(1, 1, *SIZE)
    image[..., 20:] = 1
    seen = []

    def score(x, _):
        seen.append(x[0].detach())
        return contrast(x[0]) + x[0].mean(dim=(1, 2, 3))

    problem = blurred_problem(score, image)
    settings = dataclasses.replace(FAST, mirror=True, jitter=0.0)
    ascent = Ascent(settings, problem, 0)
    with torch.no_grad():
        seen.clear()
        for iteration in (0, 1, 2, 3, 14, 15):
            ascent._step(iteration)
    bright_left = [bool(x[..., :16].mean() > x[..., 16:].mean()) for x in seen]
    # The second half of the run sees the image as it is.
    assert bright_left == [False, False, True, True, False, False]
    # A blur leaves the far ends as they are, the mean colour is 0.375 there too.
    darkest = [float(x.amin()) for x in seen]
    assert max(darkest[0], darkest[2]) < 0.05
    assert min(darkest[1], darkest[3]) > 0.05


def test_the_other_background_is_the_mean_of_the_most_perturbed_level():
    levels = torch.arange(2 * 3 * 2 * 4, dtype=torch.float32).view(2, 3, 2, 4) ** 2
    levels[0, 0, 0, 1] = torch.nan
    problem = Problem(lambda x, _: x[0].sum((1, 2)), (levels,), (0.5,), "deletion", 3)
    flat = problem.over_mean_colour()
    mask = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]).expand(2, 1, 4)
    expected = []
    for both in levels:
        colour = both[0].nanmean(dim=1)
        removed = both[-1, :, :2].sum() + 2 * colour.sum()  # the mask is taken away
        expected.append(-float(removed))
    assert flat.rewards((mask,), torch.tensor([0, 1])).tolist() == expected
    assert (flat.game, flat.perturbations_per_eval) == ("deletion", 3)


def test_a_score_that_breaks_over_the_mean_colour_says_so():
    def score(x, _):
        return contrast(x[0] / x[0].std(dim=(1, 2, 3), keepdim=True))

    problem = blurred_problem(score, noise(1, 1, *SIZE), areas=(1.0,), game="hybrid")
    with pytest.raises(RuntimeError, match=r"over the mean colour, see LevelSetSol"):
        FAST.solve(problem)
    dataclasses.replace(FAST, flat_background=False).solve(problem)


def test_fields_are_compared_at_the_areas_of_the_step(monkeypatch):
    solver = dataclasses.replace(FAST, iterations=21, first_area=0.5, jitter=0.5)
    met, moved = [], []
    exchange, shifts = Ascent._exchange, level_set.random_shifts
    monkeypatch.setattr(
        Ascent,
        "_exchange",
        lambda self, of, areas: (met.append(list(areas)), exchange(self, of, areas)),
    )
    monkeypatch.setattr(
        level_set,
        "random_shifts",
        lambda source, reach: (moved.append(reach), shifts(source, reach))[1],
    )
    solver.solve(problem_of(areas=(0.02, 0.1)))
    assert [areas[0] for areas in met] == pytest.approx(
        [0.5 * 0.04 ** (10 / 14), 0.02, 0.02]
    )
    # Never more than a third of the width of the smallest mask.
    assert moved[0] == pytest.approx(0.5**0.5 / 3)
    assert moved[-1] == pytest.approx(0.02**0.5 / 3)


# --- what the model is shown ---

IMAGES = torch.tensor([0, 0])


@pytest.mark.parametrize("shape", [(2, 1, 6, 9), (1, 2, 4, 5, 6)])
@pytest.mark.parametrize("share", [0.0, 0.2, -0.4, 0.5])
def test_shifted_copies_enter_again_at_the_other_border(shape, share):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (shown,) = Copy(False, [share] * 3)((inputs,), IMAGES)
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
        assert torch.equal(Copy(True, ())((inputs,), IMAGES)[0], expected)


def test_copies_pass_the_gradient_back_to_where_it_came_from():
    inputs = torch.randn(1, 1, 6, 7, dtype=torch.double, requires_grad=True)
    view = Copy(True, [0.3, -0.3])
    assert torch.autograd.gradcheck(lambda x: view((x,), IMAGES), (inputs,))


def test_some_images_are_mirrored_and_others_not():
    inputs, others = torch.randn(3, 1, 2, 5), torch.randn(3, 1, 4, 4)
    view = Copy([torch.tensor([True, False]), torch.tensor([False, False])], ())
    shown, same = view((inputs, others), torch.tensor([1, 0, 1]))
    assert torch.equal(shown, torch.stack([inputs[0], inputs[1].flip(-1), inputs[2]]))
    assert torch.equal(same, others)


@pytest.mark.parametrize(
    "shape", [(2, 3, 11), (1, 1, 3, 40), (1, 1, 40, 3), (1, 1, 5, 16, 16)]
)
def test_signals_and_what_has_a_short_axis_are_not_shifted(shape):
    inputs = torch.randn(shape)
    (shown,) = Copy(False, [0.4] * 3)((inputs,), IMAGES)
    assert torch.equal(shown, inputs)


# --- large images ---


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_a_large_image_is_seen_one_mask_at_a_time_with_the_same_outcome(
    game, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 3, 20, 24, generator=generator)
    weights = torch.randn(3, 20, 24, generator=generator)
    rows = []

    def model(x):
        rows.append(len(x))
        return torch.tanh(0.1 * (x * weights).sum((1, 2, 3)))

    method = ExtremalPerturbation(model, solver=LevelSetSolver(iterations=8))
    usual = method.optimize(inputs, areas=[0.1, 0.3], game=game)
    assert max(rows) > 2
    rows.clear()
    monkeypatch.setattr(apply, "LARGE_IMAGE", 1)
    monkeypatch.setattr(levels_module, "LARGE_IMAGE", 1)
    monkeypatch.setattr(problem_module, "LARGE_IMAGE", 1)
    found = method.optimize(inputs, areas=[0.1, 0.3], game=game)
    assert max(rows) == (2 if game == "hybrid" else 1)
    torch.testing.assert_close(found.masks, usual.masks, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scores, usual.scores, rtol=1e-4, atol=1e-4)
