"""The ascent on a field: where it starts, what it costs, what the model is shown."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from captum_extremal import (
    BlurPerturbation,
    ExtremalPerturbation,
    GradientSolver,
    LevelSetSolver,
    Problem,
    presets,
)
from captum_extremal.masks.fields import Field
from captum_extremal.perturbations import apply
from captum_extremal.perturbations import levels as levels_module
from captum_extremal.solvers import level_set
from captum_extremal.solvers import problem as problem_module
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
    ("areas", "start", "options"),
    [
        ((0.1,), 16, {"mirror": True}),
        ((0.1, 0.2), 12, {}),  # the model looks at one side
        ((0.1, 0.2, 0.3), 8, {"mirror": False}),
        ((0.1, 0.2), 4, {"mirror": False, "flat_background": False}),
    ],
)
def test_the_cost_is_as_documented(areas, start, options):
    seen = {True: 0, False: 0}

    def score(x):
        seen[x.requires_grad] += len(x)
        return see(x)

    heard = []
    solver = LevelSetSolver(iterations=20, **options)  # 8 of them are shared
    solver.solve(problem_of(score, areas, images=2), 0, heard.append)
    assert seen[True] == 2 * (start + 4 * 8 + 12 * len(areas))
    assert seen[False] == 0
    assert sum(heard) == 20 == solver.total_steps


def test_a_ranking_costs_the_same_for_any_number_of_areas():
    def cost(areas):
        seen = []

        def score(x):
            seen.append(len(x))
            return see(x)

        LevelSetSolver().for_ranking().solve(problem_of(score, areas))
        return sum(seen)

    many = tuple((k + 1) / 40 for k in range(40))
    assert cost(many) == cost((0.2,)) <= 130


def test_a_first_look_takes_less_than_half_the_work():
    def cost(solver):
        seen = []
        problem = problem_of(lambda x: seen.append(len(x)) or see(x), (0.05, 0.1, 0.2))
        solver.solve(problem)
        return sum(seen)

    assert 2 * cost(LevelSetSolver.fast()) < cost(LevelSetSolver())


def test_a_mask_does_not_depend_on_the_other_areas():
    (alone,) = solve(areas=(0.11,)).masks
    (beside,) = solve(areas=(0.05, 0.11, 0.4)).masks
    assert torch.equal(alone[0], beside[1])


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
        solver = LevelSetSolver(edge=0.0, jitter=0.0, **options)
        method = ExtremalPerturbation(score, BlurPerturbation(sigma_max=3), solver)
        kept = method.attribute(image, areas=0.05)[0, 0] >= 0.5
        return float(kept[4:20].float().sum() / kept.sum())

    assert share_on_the_object(flat_background=False) < 0.1
    assert share_on_the_object() > 0.2  # the end sees the blurred remains again


def steps_of(solver, areas=(0.1,), **options):
    """What the model is shown by each step: (step, image) pairs."""
    shown = []
    problem = problem_of(lambda x: shown.append(x.detach()) or see(x), areas, **options)
    steps = []
    with torch.no_grad():
        run = solver.start(problem, 0)
        shown.clear()
        while run.step():
            steps.append(torch.cat(shown))
            shown.clear()
    return steps


def test_large_areas_are_explored_before_small_ones_and_the_asked_ones_refined():
    solver = LevelSetSolver(iterations=50, jitter=0.0, flat_background=False)
    kept = [step.mean(dim=(1, 2, 3)) for step in steps_of(solver, (0.1, 0.3))]
    survey, explore, refine = kept[:4], kept[4:20], kept[20:]
    assert float(torch.cat(survey).amax()) > 0.6
    assert explore[0].tolist() == pytest.approx([0.5] * 4, abs=0.1)
    means = [float(values.mean()) for values in explore]
    assert means[0] > means[4] > means[8]
    assert float(torch.cat(explore[8:]).amin()) < 0.1 < float(explore[-1].amax())
    for values in refine[-10:]:
        assert values.tolist() == pytest.approx([0.1, 0.3], abs=0.02)


def test_copies_are_shifted_by_no_more_than_a_third_of_the_width_of_the_mask(
    monkeypatch,
):
    moved, shifts = [], level_set.random_shifts

    def noted(source, reach):
        moved.append(reach)
        return shifts(source, reach)

    monkeypatch.setattr(level_set, "random_shifts", noted)
    LevelSetSolver(iterations=50, jitter=0.5).solve(problem_of(areas=(0.02, 0.1)))
    explored = moved[4 * 4 :]
    assert len(explored) == 4 * 16
    assert explored[:4] == pytest.approx([0.5**0.5 / 3] * 4)
    assert 0.02**0.5 / 3 <= min(explored) < 0.03**0.5 / 3
    assert max(explored) <= 0.5**0.5 / 3 + 1e-9


def test_the_shared_part_of_the_steps_may_be_all_or_none():
    for shared, shown in ((0.0, [2] * 10), (1.0, [4] * 10), (0.4, [4] * 4 + [2] * 6)):
        solver = dataclasses.replace(EXACT, iterations=10, shared=shared)
        steps = steps_of(solver, (0.1, 0.2))
        assert [len(step) for step in steps] == shown


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


def test_copies_and_backgrounds_serve_the_exploration_and_the_end_sees_the_input():
    image = torch.zeros(1, 1, *SIZE)
    image[..., 20:] = 1
    seen = []

    def score(x, _):
        seen.append(x[0].detach())
        return contrast(x[0]) + x[0].mean(dim=(1, 2, 3))

    solver = LevelSetSolver(iterations=30, mirror=True, jitter=0.0)
    with torch.no_grad():
        run = solver.start(blurred_problem(score, image), 0)
        seen.clear()
        while run.step():
            pass
    bright_left = [bool(x[..., :16].mean() > x[..., 16:].mean()) for x in seen]
    explored = bright_left[: 4 * 12]
    assert 0.1 < sum(explored) / len(explored) < 0.6
    assert not any(bright_left[4 * 7 :])  # from the middle of the exploration on
    # The mean colour is 0.375; a blur leaves less than half of the pixels near to it.
    flat = [bool(((x - 0.375).abs() < 0.02).float().mean() > 0.5) for x in seen]
    assert flat[4 * 12 :] == [False, True] * 4 + [False] * 10
    for step in range(8, 12):
        assert sum(flat[4 * step : 4 * step + 4]) == 2


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


# --- the answer: stable, smooth, in an order ---


def test_the_anchor_stays_where_it_is():
    with torch.no_grad():
        run = LevelSetSolver(iterations=20).start(problem_of(), 3)
        while run.done < run.survey:
            run.step()
        before = run.anchor[0].clone()
        while run.step():
            pass
    assert torch.equal(run.anchor[0], before)
    assert not torch.equal(run.images.params[0], before)


def two_sided(x):
    """The mirror serves at large areas, not at small ones."""
    spot, broad = x[:, 0, 14:18, 4:8], x[:, 0, 6:26, 6:26]
    return 3 * spot.mean(dim=(1, 2)) + 3 * broad.mean(dim=(1, 2))


def test_the_ranking_does_not_depend_on_what_is_asked_for():
    method = ExtremalPerturbation(two_sided, "fade", LevelSetSolver(iterations=20))
    inputs = torch.ones(1, 1, *SIZE)
    ranking = method.attribute(inputs, areas=None)
    assert torch.equal(ranking, method.optimize(inputs, areas=None).ranking)
    masks = [method.optimize(inputs, areas=a).masks[0, 0] for a in (0.1, [0.1, 0.5])]
    assert torch.equal(*masks)


def test_masks_of_a_ranking_are_nested_whatever_the_smoothness():
    solver = LevelSetSolver(iterations=20, smoothness=6)
    method = ExtremalPerturbation(two_sided, "fade", solver)
    kept = method.optimize(torch.ones(1, 1, *SIZE), areas=None).masks[0, :, 0] >= 0.5
    assert not (kept[:-1] & ~kept[1:]).any()


def test_the_first_area_may_be_none():
    assert solve(dataclasses.replace(EXACT, first_area=0)).masks[0].shape[0] == 1


def test_a_model_that_normalises_each_image_can_play_the_hybrid_game():
    def score(x, _):
        flat = x[0].flatten(1)
        scaled = (flat - flat.mean(1, keepdim=True)) / (
            flat.std(1, keepdim=True) + 1e-5
        )
        return scaled.view_as(x[0])[:, 0, 4:10, 4:10].mean(dim=(1, 2))

    image = 0.1 * noise(1, 1, *SIZE)
    image[..., 4:10, 4:10] += 0.8
    found = FAST.solve(blurred_problem(score, image, areas=(0.1,), game="hybrid"))
    assert int((found.masks[0][0, 0, 4:10, 4:10] >= 0.5).sum()) >= 30


def spots(x):
    """Two of the same worth, in which a mask of one has to choose."""
    return (x[:, 0, 4:12, 4:12] + x[:, 0, 20:28, 20:28]).mean(dim=(1, 2))


def overlap(one, other):
    one, other = one >= 0.5, other >= 0.5
    return float((one & other).sum() / (one | other).sum())


def test_of_equal_answers_every_seed_gives_the_same():
    masks = [
        solve(LevelSetSolver(), seed, score=spots, areas=(0.06,)) for seed in (0, 7)
    ]
    assert overlap(masks[0].masks[0], masks[1].masks[0]) > 0.7


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_planted_square_is_found(share):
    side = round(64 * share**0.5)
    truth = torch.zeros(64, 64)
    truth[8 : 8 + side, 5 : 5 + side] = 1

    def score(x):
        return (x[:, 0] * truth).sum(dim=(1, 2)) / truth.sum()

    area = float(truth.mean())
    (mask,) = solve(LevelSetSolver(), score=score, areas=(area,), size=(64, 64)).masks
    assert overlap(mask[0, 0], truth) >= 0.95


def test_two_places_that_are_needed_together_are_found():
    one, two = torch.zeros(64, 64), torch.zeros(64, 64)
    one[12:24, 4:16] = two[40:52, 44:56] = 1

    def score(x):
        first, second = ((x[:, 0] * t).sum(dim=(1, 2)) / 144 for t in (one, two))
        return first * second

    areas = (float((one + two).mean()),)
    (mask,) = solve(LevelSetSolver(), score=score, areas=areas, size=(64, 64)).masks
    assert overlap(mask[0, 0], one + two) >= 0.95


def test_the_ranking_is_an_order_of_all_pixels_whose_level_sets_are_nested_masks():
    method = ExtremalPerturbation(see, "fade", LevelSetSolver(iterations=20))
    inputs = torch.ones(2, 3, *SIZE)
    result = method.optimize(inputs, areas=None)
    assert result.ranking.shape == (2, 1, *SIZE)
    steps = torch.linspace(0, 1, 1024)
    for ranking in result.ranking:
        torch.testing.assert_close(ranking.flatten().sort().values, steps)
    assert result.masks.shape == (2, 20, 1, *SIZE)
    small, large = (result.mask_at(area) >= 0.5 for area in (0.1, 0.37))
    assert small.flatten(1).sum(dim=1).tolist() == [102, 102]
    assert large.flatten(1).sum(dim=1).tolist() == [379, 379]
    assert not (small & ~large).any()
    attribution = method.attribute(inputs, areas=None)
    assert attribution.shape == inputs.shape
    assert torch.equal(attribution[:, :1], result.ranking)


def test_results_without_a_ranking_say_so():
    method = ExtremalPerturbation(see, "fade", GradientSolver(iterations=3))
    inputs = torch.ones(1, 1, *SIZE)
    with pytest.raises(ValueError, match=r"areas must be given .* for GradientSolver"):
        method.attribute(inputs, areas=None)
    groups = torch.arange(16).repeat_interleave(64).view(1, 1, *SIZE)
    with pytest.raises(ValueError, match=r"areas must be given .* for SwapSolver"):
        ExtremalPerturbation(see, "fade").attribute(
            inputs, areas=None, feature_mask=groups
        )
    result = method.optimize(inputs, areas=0.1)
    with pytest.raises(ValueError, match="mask_at takes a ranking"):
        result.mask_at(0.1)


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


@pytest.mark.parametrize("size", [224, (), (0, 224), (2,) * 4], ids=str)
def test_the_smooth_preset_refuses_what_is_no_size(size):
    with pytest.raises(ValueError, match="size must"):
        presets.smooth(size)


def test_the_smooth_preset_is_as_smooth_as_the_paper():
    assert presets.smooth()["solver"] == LevelSetSolver(smoothness=23)
    size = (112, 112)
    solver = dataclasses.replace(presets.smooth(size)["solver"], iterations=10)
    problem = problem_of(lambda x: x[:, 0, :56, 30:60].mean((1, 2)), (0.1,), size=size)
    mask = solver.solve(problem).masks[0][0, 0] >= 0.5
    # What a disk of nearly this radius fits into is nearly all of it.
    rows, columns = torch.meshgrid(
        torch.arange(23) - 11, torch.arange(23) - 11, indexing="ij"
    )
    disk = (rows**2 + columns**2 <= 10**2).float()[None, None]
    padded = torch.nn.functional.pad(mask[None, None].float(), (11,) * 4, value=1.0)
    fits = torch.nn.functional.conv2d(padded, disk) >= disk.sum()
    spread = torch.nn.functional.conv2d(fits.float(), disk, padding=11) > 0
    assert (spread[0, 0] & mask).sum() > 0.9 * mask.sum()
