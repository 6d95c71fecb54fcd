"""`ExtremalPerturbation`: what its masks show, what each option changes, bad input."""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_extremal.extremal import DEFAULT_AREAS, ExtremalPerturbation
from captum_extremal.perturbations.levels import BlurPerturbation, FadePerturbation
from captum_extremal.solvers import (
    GradientSolver,
    LevelSetSolver,
    SearchSolver,
    Solution,
)
from captum_extremal.solvers.rewards import contrastive_reward, simple_reward
from tiny_cases import STEPS, assert_same
from tiny_models import (
    Blocks,
    ConvNet,
    Either,
    NoModel,
    TwoInputs,
    compiled,
    constant,
    share_inside,
    traces,
    varied,
)


def method_of(model, **options):
    """The method with a fade and few steps, unless told otherwise."""
    settings = {"perturbation": "fade", "solver": STEPS} | options
    return ExtremalPerturbation(model, **settings)


AREAS = (0.1, 0.2)


def optimize(model, inputs, target=0, areas=AREAS, **options):
    return method_of(model).optimize(inputs, target, areas, **options)


def attribute(model, inputs, target=0, areas=AREAS, **options):
    return method_of(model).attribute(inputs, target, areas, **options)


def pixels_kept(masks):
    """Pixels at or above 0.5 of each mask, (N, A)."""
    return (masks >= 0.5).flatten(2).sum(dim=2)


# --- what it finds ---


@pytest.mark.parametrize("target", range(4))
def test_the_mask_covers_what_the_model_looks_at(target, device):
    inputs = constant((1, 3, 16, 16)).to(device)
    result = optimize(Blocks().to(device), inputs, target, (0.1, 0.25))
    for mask in result.masks[0, :, 0]:
        assert share_inside(mask, target) >= 0.95


def test_a_mask_of_the_area_of_a_block_covers_the_block():
    solver = GradientSolver(iterations=60, score_weight=None, mirror=False)
    result = method_of(Blocks(), solver=solver).optimize(constant(), 0, (0.25,))
    kept = result.masks[0, 0, 0] >= 0.5
    assert kept[:6, :6].float().mean() >= 0.9  # smooth masks round off its corner


def test_a_real_search_ends_at_the_pixels_that_count():
    # The defaults, as a user calls them; what counts is a disc away from the borders.
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = (rows - 12) ** 2 + (columns - 15.5) ** 2 <= 36

    def model(x):
        return 30 * x[:, :, disc].mean(dim=(1, 2))

    method = ExtremalPerturbation(model, perturbation="fade")
    area = float(disc.float().mean())
    result = method.optimize(constant((1, 1, 32, 32)), None, (area,))
    kept = result.masks[0, 0, 0] >= 0.5
    overlap = (kept & disc).sum() / (kept | disc).sum()
    assert overlap > 0.75
    assert result.scores[0, 0] > 0.8 * result.input_score[0]


@pytest.mark.parametrize("perturbation", ["fade", "blur"])
@pytest.mark.parametrize("areas", [(0.05, 0.1, 0.2), (0.9, 0.001), (1.0,), 0.37])
def test_the_area_is_exact(areas, perturbation):
    method = method_of(ConvNet(3).eval(), perturbation=perturbation)
    masks = method.optimize(varied((2, 3, 15, 11)), [0, 2], areas).masks
    asked = [areas] if isinstance(areas, float) else areas
    counts = [max(1, round(a * 165)) for a in asked]
    assert pixels_kept(masks).tolist() == [counts, counts]


def test_masks_lie_in_the_unit_interval_and_are_plain_tensors():
    masks = optimize(Blocks(), varied((2, 3, 12, 12)), [1, 2]).masks
    assert masks.shape == (2, 2, 1, 12, 12)
    assert masks.dtype == torch.float32
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert not masks.requires_grad


def test_the_scores_belong_to_the_masks():
    model, inputs = Blocks(), varied((2, 3, 12, 12))
    result = optimize(model, inputs, [1, 2])
    labels = torch.tensor([[1], [2]])

    def scores(masks):
        return torch.stack(
            [
                model(inputs * masks[:, area]).gather(1, labels).squeeze(1)
                for area in range(2)
            ],
            dim=1,
        ).detach()

    torch.testing.assert_close(result.scores, scores(result.masks))
    torch.testing.assert_close(result.complement_scores, scores(1 - result.masks))
    expected = model(inputs).gather(1, labels).squeeze(1).detach()
    torch.testing.assert_close(result.input_score, expected)
    assert torch.equal(result.perturbed_score, torch.zeros(2))


def test_the_scores_are_those_of_the_reward_without_sign_in_every_game():
    inputs = varied((2, 3, 12, 12))
    for game in ("preservation", "deletion", "hybrid"):
        result = optimize(Blocks(), inputs, 0, game=game)
        torch.testing.assert_close(result.input_score, Blocks()(inputs)[:, 0].detach())
        assert (result.complement_scores >= 0).all()


def test_the_history_has_a_series_for_each_image_and_area():
    result = optimize(Blocks(), varied((2, 3, 12, 12)), [1, 2])
    assert set(result.history) == {"reward", "area_loss", "area"}
    for series in result.history.values():
        assert series.shape == (2, 2, 8)
        assert series.isfinite().all()
    # The search begins where (nearly) everything is kept: eq. 4 with m = 1.
    start = result.history["reward"][:, :, 0]
    torch.testing.assert_close(
        start, result.input_score[:, None].expand(2, 2), rtol=0.1, atol=0
    )
    assert (result.history["area"][:, :, 0] == 1).all()
    # (1 - a) of the pixels are ones too many; the area loss goes down.
    expected = torch.tensor([0.9, 0.8]).expand(2, 2)
    torch.testing.assert_close(
        result.history["area_loss"][:, :, 0], expected, rtol=0.1, atol=0
    )
    assert (result.history["area_loss"].diff(dim=2)[:, :, 2:].mean(dim=2) < 0).all()


def test_the_settings_say_what_was_done():
    method = method_of(Blocks(), reward=contrastive_reward)
    settings = method.optimize(constant(), 0, 0.1, game="hybrid", seed=5).settings
    assert settings == {
        "method": "Extremal Perturbation",
        "version": version("captum_extremal"),
        "game": "hybrid",
        "seed": 5,
        "perturbation": "FadePerturbation(baseline=0.0)",
        "solver": repr(STEPS),
        "reward": "contrastive_reward",
        "ended": "budget",
    }
    assert json.loads(json.dumps(settings)) == settings


def test_a_star_is_the_area_of_the_block():
    # A quarter of the image suffices for 90 % of the score, a tenth does not.
    solver = GradientSolver(iterations=60, score_weight=None, mirror=False)
    areas = (0.1, 0.15, 0.2, 0.3, 0.4)
    method = method_of(Blocks(), solver=solver)
    result = method.optimize(constant((1, 3, 16, 16)), 0, areas)
    assert result.is_monotonic().all()
    a_star = result.smallest_sufficient_area(0.9 * result.input_score)
    assert a_star.item() == pytest.approx(0.3)


# --- what each option changes ---


def test_the_defaults():
    method = ExtremalPerturbation(Blocks())
    assert method.perturbation == BlurPerturbation()
    assert method.solver == LevelSetSolver()
    assert method.reward is simple_reward
    assert DEFAULT_AREAS == (0.05, 0.1, 0.2)


def test_the_defaults_of_a_call():
    def model(x):
        return Blocks()(x)[:, 1]

    result = method_of(model).optimize(constant())
    assert result.areas == DEFAULT_AREAS
    assert result.settings["game"] == "preservation"
    assert result.settings["seed"] == 0


def test_perturbation_by_name_and_as_an_object_are_the_same():
    inputs = varied()
    for name, kind in (("fade", FadePerturbation()), ("blur", BlurPerturbation())):
        by_name = method_of(Blocks(), perturbation=name).optimize(inputs, 0)
        as_object = method_of(Blocks(), perturbation=kind).optimize(inputs, 0)
        assert torch.equal(by_name.masks, as_object.masks)


def test_the_perturbation_changes_what_the_model_sees():
    model, inputs = Blocks(), varied()
    perturbed = {
        "fade": 0,
        "blur": model(BlurPerturbation().levels(inputs)[:, 0])[0, 0].item(),
        FadePerturbation(0.25): 0.25 * 300,
    }
    for perturbation, score in perturbed.items():
        result = method_of(model, perturbation=perturbation).optimize(inputs, 0)
        assert result.perturbed_score.item() == pytest.approx(score, rel=1e-5)


def test_any_object_with_levels_can_perturb():
    class Negative:
        def levels(self, inputs):
            return torch.stack([-inputs, inputs], dim=1)

    result = method_of(Blocks(), perturbation=Negative()).optimize(constant(), 2)
    assert result.perturbed_score.item() == pytest.approx(-300)
    assert share_inside(result.masks[0, 0, 0], 2) == 1


def test_a_perturbation_that_works_in_place_changes_no_input_of_the_caller():
    class InPlace:
        def levels(self, inputs):
            assert not inputs.requires_grad
            before = inputs.clone()
            return torch.stack([inputs.zero_(), before], dim=1)

    inputs = constant().requires_grad_()
    method = method_of(Blocks(), perturbation=InPlace())
    expected = method_of(Blocks()).optimize(constant(), 2).masks
    assert torch.equal(method.optimize(inputs, 2).masks, expected)
    assert torch.equal(inputs, constant())


def test_each_input_of_a_tuple_is_perturbed():
    inputs = varied((1, 1, 12, 12)), varied((1, 3, 8, 16))
    result = method_of(TwoInputs()).optimize(inputs, 1)
    assert [tuple(m.shape) for m in result.masks] == [
        (1, 3, 1, 12, 12),
        (1, 3, 1, 8, 16),
    ]
    assert result.perturbed_score.item() == 0


def test_the_reward_changes_the_mask():
    # The classes share the top left block; each has another block of its own.
    def model(x):
        shared, first, second, _ = Blocks()(x).unbind(1)
        return torch.stack([shared + first / 4, shared + second / 4], dim=1)

    solver = GradientSolver(iterations=20, mirror=False)
    simple = method_of(model, solver=solver).optimize(constant(), 0, (0.1,))
    assert share_inside(simple.masks[0, 0, 0], 0) == 1
    contrast = method_of(model, reward=contrastive_reward, solver=solver)
    found = contrast.optimize(constant(), 0, (0.1,))
    assert share_inside(found.masks[0, 0, 0], 1) == 1
    assert found.input_score.item() == pytest.approx(0, abs=1e-3)


def test_any_function_of_output_and_target_can_be_the_reward():
    seen = []

    def reward(outputs, target):
        seen.append((tuple(outputs.shape), target))
        return outputs[:, 3]

    result = method_of(Blocks(), reward=reward).optimize(constant(), 1, (0.1,))
    assert share_inside(result.masks[0, 0, 0], 3) == 1
    assert seen[0] == ((1, 4), 1)


def test_a_reward_may_see_outputs_that_are_no_tensors():
    def model(x):
        return {"scores": Blocks()(x)}

    def reward(outputs, target):
        return outputs["scores"][:, target]

    result = method_of(model, reward=reward).optimize(constant(), 2, (0.1,))
    assert share_inside(result.masks[0, 0, 0], 2) == 1


def test_the_games_at_the_first_step():
    # All begin with the same mask, so their rewards follow from one another (Sec. 3.2).
    inputs = varied((2, 3, 12, 12))
    start = {
        game: optimize(Blocks(), inputs, 1, game=game).history["reward"][:, :, 0]
        for game in ("preservation", "deletion", "hybrid")
    }
    assert (start["preservation"] > 0).all()
    assert (start["deletion"] <= 0).all()
    torch.testing.assert_close(
        start["hybrid"], start["preservation"] + start["deletion"]
    )
    whole = Blocks()(inputs)[:, 1:2].detach().expand(2, 2)
    torch.testing.assert_close(start["preservation"] - start["deletion"], whole)


def test_deletion_needs_every_region_that_would_do_and_preservation_one():
    # Either the first or the last block is enough: to keep the score one will do; to
    # bring it down both must go.
    solver = GradientSolver(iterations=100, score_weight=None, mirror=False)
    method = method_of(Either(), solver=solver)
    masks = {
        game: method.optimize(constant(), None, (0.25,), game=game).masks[0, 0, 0]
        for game in ("preservation", "deletion")
    }
    assert share_inside(masks["preservation"], 0) >= 0.8
    assert share_inside(masks["deletion"], 0) >= 0.3
    assert share_inside(masks["deletion"], 3) >= 0.3


class Middle:
    """Sixteen pixels in the middle, whatever is asked for."""

    total_steps = 7

    def solve(self, problem, seed=0, on_step=None):
        self.seen = problem.num_cells, tuple(problem.areas), seed
        mask = torch.zeros(problem.num_cells, 1, *problem.sizes[0])
        mask[..., 4:8, 4:8] = 1
        on_step(7)
        return Solution((mask,), {"series": torch.zeros(3, problem.num_cells)})


def test_the_solver_is_used_as_it_is():
    solver, areas = Middle(), (0.11, 0.112, 0.1115)  # 16 of 144 pixels each
    method = method_of(Blocks(), solver=solver)
    result = method.optimize(constant((2, 3, 12, 12)), 0, areas, seed=11)
    assert solver.seen == (6, areas, 11)
    assert result.masks.sum() == 6 * 16
    assert result.history["series"].shape == (2, 3, 3)
    # 4 of the 36 pixels of the first block.
    torch.testing.assert_close(result.scores, torch.full((2, 3), 300 * 4 / 36))


def test_a_solver_that_misses_its_area_is_refused():
    text = (
        "the masks of Middle must hold 29 values at or above 0.5 for image 0 and area "
        "0.2, got 16; .*match_area"
    )
    with pytest.raises(ValueError, match=text):
        method_of(Blocks(), solver=Middle()).optimize(constant(), 0, (0.11, 0.2))


@pytest.mark.parametrize(
    "areas", [[0.2, 0.1], (0.2, 0.1), torch.tensor([0.2, 0.1])], ids=["l", "t", "T"]
)
def test_areas_stay_in_the_order_given(areas):
    result = optimize(Blocks(), constant(), 0, areas)
    assert result.areas == pytest.approx((0.2, 0.1))
    assert pixels_kept(result.masks).tolist() == [[29, 14]]


def test_equal_areas_give_equal_masks():
    masks = optimize(ConvNet(3).eval(), varied(), 0, (0.2, 0.2)).masks
    torch.testing.assert_close(masks[:, 0], masks[:, 1], rtol=1e-4, atol=1e-5)


# --- bad input: one clear error, nothing changed ---


def fails(error, text, model, inputs, target=0, areas=(0.1, 0.2), **options):
    """The call raises `error` with `text` and leaves all as it was."""
    of_class = {k: options.pop(k) for k in ("reward", "solver") if k in options}
    method = method_of(model, **of_class)
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    before = traces(model, *tensors)
    kept = dict(vars(method))
    for call in (method.optimize, method.attribute):
        with pytest.raises(error, match=text):
            call(inputs, target, areas, **options)
    assert traces(model, *tensors) == before
    assert vars(method) == kept


ONE, TWO = constant(), constant((2, 3, 12, 12))
UNLIKE = constant((2, 1, 12, 12)), constant((1, 3, 8, 16))
GIVES = "^forward_func must give finite scores, got"
SHAPE = r"must give one score per example: expected shape \(2,\), got"
FLOATS = "^inputs must be a floating point tensor, got torch"
TENSOR = "^forward_func must return a tensor, "
CUT = "no gradient reaches the mask through forward_func"
REFUSED = [
    (ValueError, r"^inputs must be of shape \(N, C", Blocks(), torch.zeros(4)),
    (ValueError, r"^inputs must be of shape \(N, C", Blocks(), torch.zeros(2, 5)),
    (ValueError, r"^inputs must be of shape \(N, C", Blocks(), torch.zeros(1, 3, 0, 4)),
    (ValueError, r"^inputs must be of shape \(N, C", Blocks(), ONE[..., None, None]),
    (ValueError, "^inputs must hold at least one", Blocks(), ONE[:0]),
    (ValueError, "^inputs must hold at least one tensor", Blocks(), ()),
    (ValueError, "^inputs must agree in their first", TwoInputs(), UNLIKE),
    (TypeError, FLOATS, Blocks(), ONE.to(torch.int64)),
    (TypeError, FLOATS, Blocks(), ONE.to(torch.uint8)),
    (TypeError, FLOATS, Blocks(), ONE.to(torch.bool)),
    (TypeError, FLOATS, Blocks(), ONE.to(torch.complex64)),
    (ValueError, rf"{GIVES} \[-inf\] for the fully pertu",
     lambda x: Blocks()(x).log()[:, 0], ONE, None),
    (ValueError, rf"{GIVES} \[nan\] for the untouched",
     lambda x: (Blocks()(x) - 400).sqrt()[:, 0], ONE, None),
    (ValueError, rf"{SHAPE} \(2, 4\)", Blocks(), TWO, None),
    (ValueError, rf"{SHAPE} \(\)", lambda x: Blocks()(x).sum(), TWO, None),
    (ValueError, rf"{SHAPE} \(2, 3, 12, 12\)", lambda x: x, TWO, None),
    (ValueError, rf"{SHAPE} \(1,\)", lambda x: Blocks()(x)[:1, 0], TWO, None),
    # One example has one score, but its two masks must have one each.
    (ValueError, rf"{SHAPE} \(\)", lambda x: Blocks()(x)[:, 0].sum(), ONE, None),
    (TypeError, f"{TENSOR}got ", lambda x: 3.0, ONE, None),
    (TypeError, f"{TENSOR}got ", lambda x: None, ONE, None),
    (TypeError, f"{TENSOR}got ", lambda x: [1.0, 2.0], ONE, None),
    (TypeError, f"{TENSOR}got ", lambda x: "dog", ONE, None),
    (TypeError, rf"{TENSOR}.*model\(x\)\['logits'\]",
     lambda x: {"loss": 3.0, "logits": torch.zeros(1, 4)}, ONE),
    (TypeError, rf"{TENSOR}.*model\(x\)\[1\]",
     lambda x: (None, torch.zeros(1, 4)), ONE),
    (TypeError, "^forward_func must give real scores, got torch.complex64",
     lambda x: 1j * Blocks()(x), ONE),
    (IndexError, r"^target must name one output of each example in \(\d, 4\), got 9",
     Blocks(), ONE, 9),
    (RuntimeError, CUT, lambda x: Blocks()(x.detach()), ONE),
    (RuntimeError, CUT, lambda x: Blocks().requires_grad_(False)(x.detach()), ONE),
    (RuntimeError, CUT, lambda x: torch.from_numpy(Blocks()(x).detach().numpy()), ONE),
    (RuntimeError, CUT, lambda x: torch.no_grad()(Blocks())(x), ONE),
    (RuntimeError, CUT, lambda x: (Blocks()(x) > 0.5).float(), ONE),
    (RuntimeError, CUT, lambda x: Blocks()(x).long(), ONE),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_targets_and_models_that_cannot_be(case):
    fails(*case)


def test_a_tuple_that_holds_something_else():
    model, inputs = TwoInputs(), (constant((1, 1, 12, 12)), 3.0)
    with pytest.raises(TypeError, match=r"^inputs must be a floating point tensor"):
        method_of(model).attribute(inputs, 0)


def test_no_inputs():
    with pytest.raises((AssertionError, TypeError, ValueError), match="inputs"):
        method_of(Blocks()).attribute(None, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("perturbation", ["fade", "blur"])
def test_inputs_that_are_not_finite(bad, perturbation):
    inputs = constant()
    inputs[0, 1, 2, 3] = bad
    method = method_of(Blocks(), perturbation=perturbation)
    before = traces(method.forward_func, inputs)
    with pytest.raises(ValueError, match="finite"):
        method.optimize(inputs, 0)
    assert traces(method.forward_func, inputs) == before


class Spoiled(nn.Module):
    """`Blocks` whose scores of one row turn bad from forward number `at` on."""

    def __init__(self, at, bad, row=0):
        super().__init__()
        self.blocks, self.at, self.bad, self.row = Blocks(), at, bad, row
        self.calls = 0

    def forward(self, inputs):
        scores = self.blocks(inputs)
        self.calls += 1
        if self.calls > self.at:
            bad = torch.zeros_like(scores)
            bad[self.row] = self.bad
            scores = scores + bad
        return scores


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_turn_bad_in_mid_run(bad):
    # Two forwards score the inputs, so forward 5 (from 0) is iteration 3. Row 3 is
    # image 1 at the second area.
    model = Spoiled(5, bad, row=3)
    inputs = constant((2, 3, 12, 12))
    before = traces(model, inputs)
    text = r"finite scores, got (-?inf|nan) at iteration 3 for image 1 and area 0\.2$"
    with pytest.raises(RuntimeError, match=text):
        optimize(model, inputs, 0, (0.1, 0.2))
    assert traces(model, inputs) == before


def test_scores_that_turn_bad_at_the_last_step():
    with pytest.raises(RuntimeError, match="finite scores, got nan at iteration 7"):
        optimize(Spoiled(9, float("nan")), constant(), 0, (0.1,))


def test_numbers_of_numpy_will_do():
    inputs = constant((1, 1, 12, 12))
    areas = [np.float32(0.25), torch.tensor(0.5)]
    result = method_of(Blocks()).optimize(inputs, 0, areas, seed=np.int64(3))
    assert result.areas == (0.25, 0.5)
    assert result.settings["seed"] == 3
    assert type(result.settings["seed"]) is int
    assert method_of(Blocks()).optimize(inputs, 0, np.array(0.25)).areas == (0.25,)


def test_a_model_that_sees_one_of_two_inputs_gets_a_mask_for_each():
    # No gradient to the second mask is no cut: the model just does not need it.
    def model(first, second):
        return Blocks()(first)

    inputs = constant((1, 1, 12, 12)), constant((1, 3, 8, 16))
    first, second = optimize(model, inputs, 3, (0.1,)).masks
    assert share_inside(first[0, 0, 0], 3) == 1
    assert pixels_kept(second).tolist() == [[13]]


@pytest.mark.parametrize(
    "levels",
    [
        lambda x: x,
        lambda x: x[:, None],
        lambda x: torch.stack([x, x], dim=1)[..., :-1],
        lambda x: None,
    ],
    ids=["no levels", "one level", "another size", "nothing"],
)
def test_a_perturbation_with_wrong_levels(levels):
    class Wrong:
        def levels(self, inputs):
            return levels(inputs)

    model, inputs = Blocks(), constant()
    method = method_of(model, perturbation=Wrong())
    before = traces(model, inputs)
    with pytest.raises((ValueError, TypeError), match="levels"):
        method.optimize(inputs, 0)
    assert traces(model, inputs) == before


def test_a_baseline_that_does_not_fit():
    method = method_of(Blocks(), perturbation=FadePerturbation(torch.zeros(5, 5)))
    with pytest.raises(ValueError, match=r"^baseline must broadcast to the inputs"):
        method.optimize(constant(), 0)


# --- masks of any origin ---


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_evaluate_scores_masks_as_the_result_does(game):
    inputs = varied((2, 3, 16, 16))
    method = method_of(ConvNet(3).eval())
    result = method.optimize(inputs, [0, 2], (0.1, 0.3), game=game)
    rewards = method.evaluate(inputs, result.masks, [0, 2], game=game)
    expected = {
        "preservation": result.scores,
        "deletion": -result.complement_scores,
        "hybrid": result.scores - result.complement_scores,
    }[game]
    torch.testing.assert_close(rewards, expected)
    chunked = method.evaluate(
        inputs, result.masks, [0, 2], game=game, perturbations_per_eval=1
    )
    torch.testing.assert_close(chunked, rewards)


def test_evaluate_of_several_inputs():
    inputs = (varied((2, 3, 16, 16)), varied((2, 3, 16, 16)))
    method = method_of(TwoInputs())
    result = method.optimize(inputs, 1, (0.2, 0.5))
    torch.testing.assert_close(method.evaluate(inputs, result.masks, 1), result.scores)


@pytest.mark.parametrize(
    ("masks", "kind", "text"),
    [
        (torch.ones(1, 2, 16, 16), ValueError, r"masks must be of shape \(1, A, 1, 16"),
        (torch.ones(2, 2, 1, 16, 16), ValueError, r"masks must be of shape \(1, A, 1"),
        (torch.ones(1, 0, 1, 16, 16), ValueError, r"masks must be of shape \(1, A, 1"),
        (torch.full((1, 1, 1, 16, 16), 1.5), ValueError, r"masks must lie in \[0, 1\]"),
        (torch.full((1, 1, 1, 16, 16), torch.nan), ValueError, "masks must lie in"),
        (torch.ones(1, 1, 1, 16, 16).int(), TypeError, "masks must be a floating"),
        ((torch.ones(1, 1, 1, 16, 16),), TypeError, "masks must be a tuple if inputs"),
    ],
)
def test_evaluate_names_bad_masks(masks, kind, text):
    with pytest.raises(kind, match=text):
        method_of(Blocks()).evaluate(constant((1, 3, 16, 16)), masks, 0)


def test_rejudge_finds_a_better_mask_where_there_is_one():
    inputs = constant((2, 3, 16, 16))
    method = method_of(Blocks(), solver=LevelSetSolver(iterations=20, mirror=False))
    good = method.optimize(inputs, 0, (0.1, 0.25))
    poor = method.optimize(inputs, 1, (0.1, 0.25))  # masks of another class
    verdict = good.rejudge(method, inputs, 0, random_masks=10)
    assert list(verdict.rivals) == ["again", "search", "random"]
    torch.testing.assert_close(verdict.rewards, good.scores)
    assert (verdict.rewards > verdict.rivals["random"]).all()
    challenged = poor.rejudge(method, inputs, 0, random_masks=10)
    assert not challenged.is_best().any()
    assert (challenged.margin() < 0).all()
    torch.testing.assert_close(
        challenged.margin(),
        challenged.rewards - torch.stack(list(challenged.rivals.values())).amax(dim=0),
    )


def test_rejudge_asks_the_rivals_that_are_named_and_leaves_the_method_alone():
    inputs = constant((1, 3, 16, 16))
    method = method_of(Blocks())
    result = method.optimize(inputs, 0, (0.25,), game="hybrid")
    verdict = result.rejudge(
        method, inputs, 0, solvers={"other": STEPS}, random_masks=0, seed=0
    )
    torch.testing.assert_close(verdict.rivals, {"other": verdict.rewards})
    assert verdict.is_best().all()
    assert method.solver is STEPS
    alone = result.rejudge(method, inputs, 0, solvers={}, random_masks=0)
    assert (alone.margin() == torch.inf).all()
    bad = [
        ({"random_masks": -1}, ValueError, "random_masks must be at least 0, got -1"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"solvers": [STEPS]}, TypeError, "solvers must be a dict of solvers by name"),
        (
            {"solvers": {"a": 3}},
            TypeError,
            "must be an object with a solve method, got 3",
        ),
        (
            {"solvers": {"a": LevelSetSolver}},
            TypeError,
            "must be a solver, got a class",
        ),
        ({"solvers": {"random": STEPS}}, ValueError, "must not be named random"),
    ]
    for options, kind, text in bad:
        with pytest.raises(kind, match=text):
            result.rejudge(method, inputs, 0, **options)


def test_rejudge_of_a_black_box():
    def black_box(x):
        return x.detach()[:, 0, :4, :4].mean(dim=(1, 2))

    inputs = constant((1, 3, 16, 16))
    method = method_of(black_box, solver=SearchSolver(evaluations=40))
    result = method.optimize(inputs, None, (0.1,))
    verdict = result.rejudge(method, inputs, random_masks=4)
    assert list(verdict.rivals) == ["again", "random"]


def test_random_rivals_have_the_area_and_more_of_them_are_stronger(monkeypatch):
    inputs, seen = constant((1, 3, 16, 16)), []
    method = method_of(Blocks())
    result = method.optimize(inputs, 0, (0.1, 0.5))

    def evaluate(_, masks, *call, of=method.evaluate, **options):
        seen.append(masks)
        return of(inputs, masks, *call, **options)

    monkeypatch.setattr(method, "evaluate", evaluate)
    few, many = (
        result.rejudge(method, inputs, 0, solvers={}, random_masks=n).rivals["random"]
        for n in (3, 30)
    )
    assert (many >= few).all()
    assert (many > few).any()
    drawn = [masks for masks in seen if masks is not result.masks]
    kept = torch.cat([pixels_kept(masks[0]).flatten() for masks in drawn])
    assert kept.tolist() == [26, 128] * 33


# --- errors of the model whose own message points elsewhere ---


class Batch(nn.Module):
    """Takes ``size`` rows at once; ``way`` is what it does with others."""

    def __init__(self, way, size=1):
        super().__init__()
        self.way, self.size = way, size
        self.blocks = Blocks()

    def forward(self, inputs):
        return self.way(self, inputs)


class Refused(Exception):
    """As of a runtime that knows no PyTorch."""


def view(model, inputs):
    return model.blocks(inputs.reshape(model.size, 3, 12, 12))


def refuse(model, inputs):
    if len(inputs) != model.size:
        raise Refused("INVALID_ARGUMENT")
    return model.blocks(inputs)


def fewer(model, inputs):
    return model.blocks(inputs)[: model.size]


def one_for_all(model, inputs):
    return model.blocks(inputs).sum(dim=0, keepdim=True)


WAYS = [view, refuse, fewer, one_for_all]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("images", [1, 2])
def test_a_model_for_batches_of_one_is_named(way, images):
    model = Batch(way)
    inputs = constant((images, 3, 12, 12))
    error = ValueError if way in (fewer, one_for_all) else RuntimeError
    text = "forward_func takes batches of one alone: perturbations_per_eval=1"
    fails(error, text, model, inputs)
    for game in ("preservation", "deletion", "hybrid"):
        found = optimize(model, inputs, perturbations_per_eval=1, game=game)
        expected = optimize(Blocks(), inputs, game=game)
        torch.testing.assert_close(found.masks, expected.masks)
        torch.testing.assert_close(found.scores, expected.scores)


def test_a_scripted_model_for_batches_of_one_is_named():
    model = torch.jit.trace(Batch(view), constant())
    text = "takes batches of one alone: perturbations_per_eval=1; it failed on 2 rows"
    fails(RuntimeError, text, model, constant())


def test_a_model_for_batches_of_another_number_is_named():
    model, inputs = Batch(view, 4), constant((4, 3, 12, 12))
    text = "forward_func takes batches of 4 alone: perturbations_per_eval=4"
    fails(RuntimeError, text, model, inputs)
    found = optimize(model, inputs, perturbations_per_eval=4)
    torch.testing.assert_close(found.masks, optimize(Blocks(), inputs).masks)


def test_one_mask_of_a_model_for_batches_of_one_needs_no_option():
    found = optimize(Batch(refuse), constant(), areas=0.1)
    assert torch.equal(found.masks, optimize(Blocks(), constant(), areas=0.1).masks)


def test_an_error_of_one_example_is_not_laid_on_the_batch():
    def model(inputs):
        if (inputs[:, 0, 0, 0] == 7).any():
            raise RuntimeError("seven is out of range")
        return Blocks()(inputs)

    inputs = constant((2, 3, 12, 12))
    inputs[1, 0] = 7
    fails(RuntimeError, "^seven is out of range", model, inputs, areas=(1.0,))
    target = r"^target must name one output of each example"
    fails(RuntimeError, target, Blocks(), constant((2, 3, 12, 12)), [0, 9])


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, inputs):
        return inputs.clone()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            lambda x: checkpoint(Blocks(), x, use_reentrant=True),
            "use_reentrant=False",
        ),
        (lambda x: torch.from_numpy(Blocks()(x).numpy()), r"Can't call numpy\(\)"),
        (lambda x: Blocks()(NoBackward.apply(x)), "backward"),
    ],
    ids=["checkpoint", "numpy", "no backward"],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_model_without_gradients_is_sent_to_the_search(model, text):
    text = rf"^no gradient can be taken through forward_func: .*{text}.*SearchSolver"
    fails(RuntimeError, text, model, constant())
    with torch.no_grad():
        solver = SearchSolver(evaluations=20)
        method_of(model, solver=solver).optimize(constant(), 0, 0.2)


def test_checkpointing_without_reentering_works():
    def model(inputs):
        return checkpoint(Blocks(), inputs, use_reentrant=False)

    found = optimize(model, constant())
    assert torch.equal(found.masks, optimize(Blocks(), constant()).masks)


# --- compiled models, chance, precision ---


@pytest.mark.parametrize("before", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("way", ["module", "in place", "function"])
def test_a_compiled_model_that_has_run_gives_the_same(before, way):
    torch._dynamo.reset()
    model = Blocks()
    fast = compiled(model, way)
    with before():
        fast(constant())
    found = optimize(fast, constant())
    assert torch.equal(found.masks, optimize(Blocks(), constant()).masks)


class Sometimes(nn.Module):
    """Drops everything by half a chance, by a function of its own."""

    def forward(self, inputs):
        keep = torch.rand(len(inputs), *[1] * (inputs.dim() - 1)) > 0.5
        return inputs * keep if self.training else inputs


def test_training_mode_is_told_without_a_name():
    model = nn.Sequential(Sometimes(), Blocks())
    before = traces(model)
    with pytest.warns(UserWarning, match="forward_func is in training mode: its sco"):
        optimize(model, varied())
    assert traces(model) == before
    optimize(model.eval(), varied())
    model.train()
    with pytest.warns(UserWarning, match="gives another score each time"):
        optimize(lambda x: model(x), varied())
    with pytest.warns(UserWarning, match="forward_func is in training mode: its sco"):
        method_of(model).evaluate(varied(), torch.ones(1, 1, 1, 12, 12), 0)


def precise(inputs):
    """Each pixel is worth a share of 1e-12 of the whole."""
    return 1e8 + 1e-4 * inputs.flatten(1).sum(dim=1)


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_scores_are_as_precise_as_the_model(game):
    inputs = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    masks = torch.zeros(1, 3, 1, 4, 4)
    for area, pixels in enumerate((2, 1, 3)):
        masks[0, area].flatten()[:pixels] = 1
    method = method_of(precise)
    rewards = method.evaluate(inputs, masks, game=game)
    assert rewards.dtype == torch.float64
    assert rewards[0].argsort().tolist() == [1, 0, 2]


def test_the_smallest_area_is_told_among_large_scores():
    inputs = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    solver = SearchSolver(evaluations=20)
    areas = [1 / 16, 2 / 16, 3 / 16]
    result = method_of(precise, solver=solver).optimize(inputs, None, areas)
    expected = 1e8 + 1e-4 * torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(result.scores, expected, rtol=1e-15, atol=1e-7)
    assert result.smallest_sufficient_area(1e8 + 1.5e-4).tolist() == [0.125]
    threshold = torch.tensor([1e8 + 2.5e-4], dtype=torch.float64)
    assert result.smallest_sufficient_area(threshold).tolist() == [0.1875]
    assert result.is_monotonic().tolist() == [True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_scores_become_float32(dtype):
    result = optimize(lambda x: Blocks(scale=3.0)(x).to(dtype), constant())
    assert result.scores.dtype == torch.float32


def test_a_lack_of_memory_is_not_laid_on_the_gradients():
    class Full(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, inputs):
            return inputs.clone()

        @staticmethod
        def backward(_ctx, _gradient):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    method = method_of(lambda x: Full.apply(x).mean((1, 2, 3)))
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator: can't allocate"):
        method.optimize(constant())


# --- what comes back ---


@pytest.mark.parametrize("areas", [0.2, (0.2,), (0.1, 0.2, 0.3)], ids=repr)
def test_the_attribution_is_the_mean_of_the_masks_over_the_areas(areas):
    method, inputs = method_of(Blocks()), varied((2, 3, 12, 12))
    found = method.attribute(inputs, 0, areas)
    masks = method.optimize(inputs, 0, areas).masks
    assert torch.equal(found, masks.mean(dim=1).expand_as(inputs))
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_the_area_is_exact_before_short_types_round_it(dtype):
    method, inputs = method_of(Blocks().to(dtype)), constant().to(dtype)
    found = method.attribute(inputs, 0, (0.125,))
    assert found.dtype == dtype
    assert share_inside(found[0, 0].float(), 0) == 1
    masks = method.optimize(inputs, 0, (0.125,)).masks
    assert masks.dtype == torch.float32
    assert (masks >= 0.5).sum() == 18


@pytest.mark.parametrize(
    ("error", "at", "steps"), [(ZeroDivisionError, 5, 3), (KeyboardInterrupt, 4, 2)]
)
def test_progress_ends_its_line_on_an_exception(error, at, steps, capsys):
    model = NoModel(at, error)
    before = traces(model)
    with pytest.raises(error):
        method_of(model).attribute(constant(), 0, show_progress=True)
    shown = capsys.readouterr().err
    assert f"{steps}/8" in shown
    assert shown.endswith("\n")
    assert traces(model) == before


# --- images and areas do not touch one another ---


def test_each_example_sees_its_own_argument_in_the_order_of_repeat_interleave():
    seen = []

    def model(inputs, number):
        seen.append(number.tolist())
        return Blocks()(inputs)[:, 0]

    numbers = torch.tensor([5, 6])
    attribute(model, constant((2, 3, 12, 12)), None, additional_forward_args=numbers)
    assert seen[0] == [5, 6]
    assert seen[2] == [5, 5, 6, 6]
    assert numbers.tolist() == [5, 6]


def test_jitter_and_mirror_are_the_same_for_all_examples():
    model, inputs = ConvNet(3).eval(), varied((3, 3, 12, 12))
    solver = GradientSolver(iterations=8, jitter=0.2, mirror=True)
    method = method_of(model, solver=solver)
    found = method.attribute(inputs, 0, AREAS)
    for index in range(3):
        alone = method.attribute(inputs[index : index + 1], 0, AREAS)
        assert_same(found[index : index + 1], alone)


def test_each_example_stops_on_its_own():
    # The first example's score depends on nothing that a mask can change; with the
    # area's weight it comes to rest at another time than the second.
    inputs = torch.cat([torch.zeros(1, 1, 12, 12), 40 * constant((1, 1, 12, 12))])
    solver = GradientSolver(iterations=60, mirror=False, tolerance=5e-3, patience=5)
    method = method_of(Blocks(), solver=solver)
    both = method.optimize(inputs, 0, (0.25,))
    lengths = both.history["reward"].isfinite().sum(dim=2).flatten().tolist()
    assert len(set(lengths)) == 2
    for index in range(2):
        alone = method.optimize(inputs[index : index + 1], 0, (0.25,))
        assert alone.history["reward"].isfinite().sum() == lengths[index]
        assert_same(both.masks[index : index + 1], alone.masks)


def test_areas_do_not_influence_one_another():
    inputs = varied((2, 3, 12, 12))
    method = method_of(Blocks())
    together = method.optimize(inputs, 1, (0.3, 0.1)).masks
    for index, area in enumerate((0.3, 0.1)):
        alone = method.optimize(inputs, 1, area).masks
        assert_same(together[:, index : index + 1], alone)


# --- numbers ---


def test_ties_prefer_no_position():
    # Every pixel counts alike, so nothing may tell left from right or up from down.
    def model(inputs):
        return inputs.mean(dim=(1, 2, 3))

    solver = GradientSolver(iterations=1, mirror=False)
    result = method_of(model, solver=solver).optimize(constant(), None, (0.25,))
    centre = _centre_of_mass(result.masks[0, 0, 0])
    assert_same(centre, torch.tensor([5.5, 5.5]))


def _centre_of_mass(mask):
    rows, columns = mask.sum(dim=1), mask.sum(dim=0)
    at = torch.arange(12.0)
    return torch.stack([(rows * at).sum(), (columns * at).sum()]) / mask.sum()


def test_a_model_that_looks_at_the_centre_gets_a_symmetric_mask():
    def model(inputs):
        return 300 * inputs[:, :, 4:8, 4:8].mean(dim=(1, 2, 3))

    mask = attribute(model, constant(), None, (16 / 144,))[0, 0]
    assert mask[4:8, 4:8].mean() > 0.5
    for turned in (mask.flip(0), mask.flip(1), mask.T):
        torch.testing.assert_close(turned, mask, rtol=0, atol=0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_baseline_is_one_clear_error_where_the_model_sees_it(bad):
    baseline = torch.zeros(1, 3, 12, 12)
    baseline[..., 0, 0] = bad
    method = method_of(Blocks(), perturbation=FadePerturbation(baseline))
    with pytest.raises(ValueError, match=r"finite scores, got .* fully perturbed"):
        method.attribute(constant(), 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_baseline_does_not_leak_where_the_model_does_not_look(bad):
    baseline = torch.zeros(1, 3, 12, 12)
    baseline[..., 11, 11] = bad

    def model(inputs):  # the first block alone, without touching the others
        return inputs[:, :, :6, :6].mean(dim=(1, 2, 3))

    method = method_of(model, perturbation=FadePerturbation(baseline))
    found = method.attribute(constant(), None, AREAS)
    assert_same(found, attribute(model, constant(), None))


def test_a_bad_baseline_does_not_leak_through_a_mask_of_ones():
    baseline = torch.full((1, 3, 12, 12), torch.nan)
    seen = []

    def model(inputs):
        seen.append(inputs.detach().clone())
        return inputs.nan_to_num(0.0)[:, :, :6].mean(dim=(1, 2, 3))

    method = method_of(model, perturbation=FadePerturbation(baseline))
    method.optimize(constant(), None, (1.0,))
    assert torch.equal(seen[0], constant())


def test_autocast_inside_the_model():
    model = ConvNet(3).eval()

    def cast(inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(inputs)
        assert outputs.dtype == torch.bfloat16
        return outputs

    result = method_of(cast).optimize(varied((2, 3, 12, 12)), 0, (0.25,))
    assert result.masks.dtype == torch.float32
    assert result.scores.dtype == torch.float32
    assert ((result.masks >= 0.5).sum(dim=(2, 3, 4)) == 36).all()
    assert share_inside(attribute(autocast_blocks, constant(), 1)[0, 0], 1) == 1


def autocast_blocks(inputs):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return Blocks()(inputs)


# --- sizes ---

SIZES = {
    "10x10 grey": (2, 1, 10, 10),
    "not square": (1, 3, 9, 20),
    "odd": (1, 2, 7, 11),
    "1-D": (2, 2, 40),
    "3-D": (2, 1, 6, 8, 10),
    "many channels": (1, 17, 8, 8),
}
SMALLEST = {
    "2x2": (1, 1, 2, 2),
    "2x30": (1, 1, 2, 30),
    "1-D": (1, 1, 4),
    "1": (1, 1, 1),
}


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
def test_every_size_works_and_the_mask_covers_the_right_block(shape):
    axes = len(shape) - 2
    last, area = 2**axes - 1, 0.5 / 2**axes
    method, inputs = method_of(Blocks(axes)), constant(shape)
    result = method.optimize(inputs, last, area)
    count = max(1, round(area * inputs[0, 0].numel()))
    assert ((result.masks >= 0.5).flatten(2).sum(dim=2) == count).all()
    for mask in result.masks[:, 0, 0]:
        assert share_inside(mask, last) >= 0.9
    assert torch.equal(
        method.attribute(inputs, last, area), result.masks[:, 0].expand(shape)
    )


@pytest.mark.parametrize(
    "shape", [*SIZES.values(), *SMALLEST.values()], ids=[*SIZES, *SMALLEST]
)
def test_every_size_works_with_a_blur(shape):
    inputs = torch.arange(shape[-1]) % 2 * torch.ones(shape)

    def contrast(x):  # of neighbours: a blur takes it away
        return 300 * x.square().flatten(1).mean(dim=1)

    result = method_of(contrast, perturbation="blur").optimize(inputs, None, (0.5,))
    count = max(1, round(0.5 * inputs[0, 0].numel()))
    assert result.masks.shape == (shape[0], 1, 1, *shape[2:])
    assert ((result.masks >= 0.5).flatten(2).sum(dim=2) == count).all()
    assert (result.scores >= result.perturbed_score[:, None]).all()
    assert (result.perturbed_score < result.input_score).all() == (shape[-1] > 1)
