"""What Captum expects of a drop-in method, and Captum's users: a test each.

Runs against Captum 0.8 and 0.9. The models are `tiny_models.Blocks` and its kin, whose
right mask is known by hand; few steps already order the pixels, and the area of the
delivered mask is exact whatever the steps.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    GradientAttribution,
    NoiseTunnel,
    PerturbationAttribution,
)
from captum.metrics import infidelity, sensitivity_max
from torch import nn

from captum_extremal.extremal import ExtremalPerturbation
from captum_extremal.perturbations.levels import BlurPerturbation, FadePerturbation
from captum_extremal.solvers import GradientSolver
from captum_extremal.solvers.area_loss import AreaWeight
from captum_extremal.solvers.rewards import contrastive_reward
from tiny_models import (
    Blocks,
    ConvNet,
    NoModel,
    TwoInputs,
    constant,
    share_inside,
    traces,
    varied,
)

STEPS = GradientSolver(
    area_weight=AreaWeight(growth=1.1), score_weight=None, iterations=8, mirror=False
)
AREAS = (0.1, 0.2)


def method_of(model, **options):
    """The method with a fade and few steps, unless told otherwise."""
    settings = {"perturbation": "fade", "solver": STEPS} | options
    return ExtremalPerturbation(model, **settings)


def attribute(model, inputs, target=0, areas=AREAS, **options):
    return method_of(model).attribute(inputs, target, areas, **options)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- the class ---


def test_it_is_a_perturbation_method_and_no_gradient_method():
    assert issubclass(ExtremalPerturbation, PerturbationAttribution)
    assert not issubclass(ExtremalPerturbation, GradientAttribution)


def test_the_model_alone_suffices():
    model = Blocks()
    assert ExtremalPerturbation(model).forward_func is model


def test_forward_func_is_the_only_handle_on_the_model():
    model, inputs = Blocks(), constant()
    method = method_of(model)
    method.forward_func = lambda x: model(x).flip(1)
    assert_same(
        method.attribute(inputs, 0), attribute(model, inputs, 3, (0.05, 0.1, 0.2))
    )


def test_what_the_method_says_of_itself():
    method = ExtremalPerturbation(Blocks())
    assert method.multiplies_by_inputs is False
    assert method.has_convergence_delta() is False
    assert method.get_name() == "Extremal Perturbation"


def test_attribute_future_is_refused_in_the_words_of_captum():
    text = "^attribute_future is not implemented for ExtremalPerturbation$"
    with pytest.raises(NotImplementedError, match=text):
        ExtremalPerturbation(Blocks()).attribute_future()


def test_attribute_is_logged_and_can_be_unwrapped():
    # NoiseTunnel, Insights and the layer wrappers call this.
    method = method_of(Blocks())
    bare = ExtremalPerturbation.attribute.__wrapped__
    assert_same(bare(method, constant(), 0), method.attribute(constant(), 0))


def pickled(item):
    return pickle.loads(pickle.dumps(item))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_the_method_can_be_copied_and_pickled(copied):
    method = method_of(Blocks(), reward=contrastive_reward)
    expected = method.attribute(constant(), 1)
    twin = copied(method)
    assert twin is not method
    assert_same(twin.attribute(constant(), 1), expected)


@pytest.mark.parametrize(
    "option",
    [
        GradientSolver(iterations=7, jitter=0.1),
        BlurPerturbation(num_levels=3, sigma_max=2.0),
        contrastive_reward,
    ],
    ids=lambda option: type(option).__name__,
)
def test_option_values_survive_copy_and_pickle(option):
    assert copy.deepcopy(option) == option
    assert pickled(option) == option


def test_a_tensor_baseline_survives_copy_and_pickle():
    fade = FadePerturbation(torch.tensor([0.5]).reshape(1, 1, 1))
    inputs = constant()
    for twin in (copy.deepcopy(fade), pickled(fade)):
        assert torch.equal(twin.levels(inputs), fade.levels(inputs))


# --- the model stays as it was ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:forward_func is in training mode")
def test_the_model_and_the_inputs_stay_as_they_were(training):
    model = ConvNet().train(training)
    model.conv.weight.requires_grad_(False)
    model.linear.weight.grad = torch.full_like(model.linear.weight, 3.0)
    inputs = varied((2, 1, 10, 10)).requires_grad_()
    inputs.grad = torch.full_like(inputs, 2.0)
    before = traces(model, inputs)
    attribute(model, inputs)
    assert traces(model, inputs) == before


@pytest.mark.parametrize("at", [0, 1, 2, 5, 11])
def test_everything_stays_as_it_was_when_the_model_fails(at):
    # Forward 0 and 1 score the inputs, 2 to 9 are steps, 10 and 11 judge the masks.
    model = NoModel(at)
    inputs = constant().requires_grad_()
    before = traces(model, inputs)
    with pytest.raises(ZeroDivisionError, match="out of order"):
        attribute(model, inputs)
    assert model.calls == at + 1
    assert traces(model, inputs) == before


@pytest.mark.filterwarnings("ignore:forward_func is in training mode")
def test_statistics_and_generators_stay_when_a_training_model_fails():
    class Fails(ConvNet):
        def forward(self, inputs):
            super().forward(inputs)
            raise ZeroDivisionError("the model is out of order")

    model = Fails().train()
    before = traces(model)
    with pytest.raises(ZeroDivisionError):
        attribute(model, varied((2, 1, 10, 10)))
    assert traces(model) == before


def test_the_users_hooks_fire_and_stay():
    model, seen = Blocks(), []
    model.pool.register_forward_hook(lambda *_: seen.append("forward"))
    model.register_full_backward_hook(lambda *_: seen.append("backward"))
    before = traces(model)
    attribute(model, constant())
    # Two forwards score the inputs, two judge the masks; 8 steps need a gradient.
    assert (seen.count("forward"), seen.count("backward")) == (12, 8)
    assert traces(model) == before


def test_frozen_parameters_do_not_hinder_and_stay_frozen():
    model = Blocks().requires_grad_(False)
    assert_same(attribute(model, constant()), attribute(Blocks(), constant()))
    assert not model.weight.requires_grad


def test_a_training_model_warns_once_and_counts_nothing():
    model = ConvNet().train()
    method = method_of(model)
    before = traces(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.attribute(varied((2, 1, 10, 10)), 0)
        method.attribute(varied((2, 1, 10, 10)), 0)
    assert [str(w.message)[:34] for w in caught] == [
        "forward_func is in training mode ("
    ]
    assert "norm" in str(caught[0].message)
    assert model.training
    assert traces(model) == before


def test_a_training_model_without_such_layers_does_not_warn():
    attribute(Blocks().train(), constant())


# --- what goes in and what comes out ---


def test_a_tensor_gives_a_tensor_and_a_tuple_a_tuple():
    model = Blocks()
    alone = attribute(model, constant())
    inside = attribute(model, (constant(),))
    assert isinstance(inside, tuple)
    assert len(inside) == 1
    assert_same(inside[0], alone)


def test_a_list_of_inputs_is_captums_assertion_error():
    with pytest.raises(AssertionError, match=r"must be a torch\.Tensor or a tuple"):
        attribute(Blocks(), [constant()])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:1, :1].expand(2, 3, 12, 12),
        lambda x: x.repeat(1, 1, 1, 2)[..., ::2],
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x),
    ],
    ids=["plain", "channels_last", "transposed", "expanded", "strided", "grad", "leaf"],
)
def test_the_attribution_has_the_shape_of_the_inputs_and_a_plain_layout(make, device):
    inputs = make(constant((2, 3, 12, 12)).to(device))
    found = attribute(Blocks().to(device), inputs)
    assert found.shape == inputs.shape
    assert found.device == inputs.device
    assert found.dtype == inputs.dtype
    assert not found.requires_grad
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == found.numel() * found.element_size()
    assert_same(found.cpu(), attribute(Blocks(), constant((2, 3, 12, 12))))


def test_channels_last_inputs_give_what_others_give():
    model, inputs = ConvNet(3).eval(), varied((2, 3, 12, 10))
    found = attribute(model, inputs.to(memory_format=torch.channels_last))
    assert found.is_contiguous()
    assert_same(found, attribute(model, inputs))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_the_attribution_has_the_dtype_of_the_inputs(dtype):
    method, inputs = method_of(Blocks().to(dtype)), constant().to(dtype)
    found = method.attribute(inputs, 0, (0.125,))
    assert found.dtype == dtype
    assert share_inside(found[0, 0].float(), 0) == 1
    # The area is exact before short types round it.
    masks = method.optimize(inputs, 0, (0.125,)).masks
    assert masks.dtype == torch.float32
    assert (masks >= 0.5).sum() == 18


def test_values_are_in_the_unit_range_and_equal_over_channels():
    found = attribute(Blocks(), varied())
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, found[:, :1].expand_as(found))


def test_the_first_dimension_is_the_batch_whatever_the_areas():
    for areas in (0.2, (0.2,), (0.1, 0.2, 0.3)):
        found = attribute(Blocks(), constant((2, 3, 12, 12)), areas=areas)
        assert found.shape == (2, 3, 12, 12)


def test_one_area_gives_the_mask_and_several_their_mean():
    method, inputs = method_of(Blocks()), constant((2, 3, 12, 12))
    one = method.optimize(inputs, 0, 0.2)
    assert torch.equal(method.attribute(inputs, 0, 0.2)[:, :1], one.masks[:, 0])
    both = method.optimize(inputs, 0, (0.1, 0.2))
    expected = both.masks.mean(dim=1).expand_as(inputs)
    assert_same(method.attribute(inputs, 0, (0.1, 0.2)), expected)


def test_what_comes_back_shares_no_memory_with_the_caller():
    inputs = constant()
    found = attribute(Blocks(), inputs)
    found.zero_()
    assert torch.equal(inputs, constant())


# --- targets ---

CLASSES = [3, 0, 2]  # of three examples

FORMS = {
    "list of int": [3, 0, 2],
    "tensor": torch.tensor([3, 0, 2]),
    "list of tuples": [(3,), (0,), (2,)],
}
SINGLE_FORMS = {
    "int": 2,
    "0-d tensor": torch.tensor(2),
    "1-element tensor": torch.tensor([2]),
    "tuple": (2,),
    "list of equal ints": [2, 2, 2],
    "tensor of equal ints": torch.tensor([2, 2, 2]),
    "list of equal tuples": [(2,), (2,), (2,)],
}


@pytest.mark.parametrize("target", FORMS.values(), ids=FORMS.keys())
def test_each_example_has_its_own_target(target):
    inputs = constant((3, 3, 12, 12))
    found = attribute(Blocks(), inputs, target)
    for index, label in enumerate(CLASSES):
        assert share_inside(found[index, 0], label) == 1
        assert_same(found[index : index + 1], attribute(Blocks(), inputs[:1], label))


@pytest.mark.parametrize("target", SINGLE_FORMS.values(), ids=SINGLE_FORMS.keys())
def test_one_target_for_all_examples(target):
    inputs = varied((3, 3, 12, 12))
    found = attribute(Blocks(), inputs, target)
    assert_same(found, attribute(Blocks(), inputs, 2))
    assert all(share_inside(mask[0], 2) == 1 for mask in found)


@pytest.mark.parametrize(
    "target", [1, torch.tensor(1), torch.tensor([1]), [1], (1,), [(1,)]], ids=repr
)
def test_every_form_of_target_works_for_one_example(target):
    found = attribute(Blocks(), constant(), target)
    assert_same(found, attribute(Blocks(), constant(), 1))


def test_no_target_is_one_score_an_example():
    model = Blocks()
    expected = attribute(model, constant(), 1)
    for inner in (lambda x: model(x)[:, 1], lambda x: model(x)[:, 1:2]):
        assert_same(attribute(inner, constant(), None), expected)


@pytest.mark.parametrize(
    "target", [(1, 0), [(1, 0), (1, 0)]], ids=["tuple", "list of tuples"]
)
def test_a_target_may_name_an_entry_of_a_wide_output(target):
    model, inputs = Blocks(), constant((2, 3, 12, 12))

    def wide(x):
        return model(x).reshape(-1, 2, 2)

    assert_same(attribute(wide, inputs, target), attribute(model, inputs, 2))


@pytest.mark.parametrize("one_at_a_time", [1, 4, 16])
def test_different_targets_stay_with_their_examples_in_every_chunk(one_at_a_time):
    found = attribute(
        Blocks(),
        constant((3, 3, 12, 12)),
        [(3,), (0,), (2,)],
        perturbations_per_eval=one_at_a_time,
    )
    assert [share_inside(m[0], c) for m, c in zip(found, CLASSES, strict=True)] == [
        1
    ] * 3


def test_the_target_stays_as_it_was():
    target = torch.tensor([3, 0])
    attribute(Blocks(), constant((2, 3, 12, 12)), target)
    assert target.tolist() == [3, 0]


BAD_TARGETS = {
    "too large": 4,
    "too large in a tuple": (4,),
    "too many indices": (1, 1),
    "a list too short": [0],
    "a list too long": [0, 1, 2],
    "a list as long as a chunk": [0, 1],
    "a tensor as long as a chunk": torch.tensor([0, 1]),
    "a matrix": torch.zeros(2, 2, dtype=torch.long),
    "a float": 1.0,
    "a float tensor": torch.tensor(1.0),
    "a list of floats": [0.0, 1.0, 2.0, 3.0],
    "a string": "dog",
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
def test_a_bad_target_stays_captums_error(target):
    # With chunks of two, a list of two would fit a chunk, but not the four examples.
    model, inputs = Blocks(), constant((4, 3, 12, 12))
    with pytest.raises((AssertionError, IndexError, RuntimeError)) as captums:
        FeatureAblation(model).attribute(inputs, target=target)
    before = traces(model, inputs)
    with pytest.raises(captums.type):
        attribute(model, inputs, target, perturbations_per_eval=2)
    assert traces(model, inputs) == before


# --- additional_forward_args ---


def weighted(inputs, weights, factor=1.0):
    """The sum of the blocks' scores, weighted for each example: (K, 4) weights."""
    return (Blocks()(inputs) * weights).sum(dim=1) * factor


def test_an_argument_with_one_entry_an_example_goes_with_its_example():
    weights = torch.eye(4)[[3, 0, 2]]
    for chunk in (1, 4, 16):
        found = attribute(
            weighted,
            constant((3, 3, 12, 12)),
            None,
            additional_forward_args=weights,
            perturbations_per_eval=chunk,
        )
        expected = attribute(Blocks(), constant((3, 3, 12, 12)), CLASSES)
        assert_same(found, expected)


@pytest.mark.parametrize("factor", [2.0, torch.tensor(2.0)], ids=repr)
def test_a_number_or_scalar_tensor_is_for_all_examples(factor):
    weights = torch.eye(4)[[3, 0]]
    result = method_of(weighted).optimize(
        constant((2, 3, 12, 12)), None, AREAS, (weights, factor)
    )
    assert_same(result.input_score, torch.tensor([600.0, 600.0]))


@pytest.mark.parametrize(
    "value",
    [None, "words", [1.0, 2.0], (1.0, 2.0), {"a": 1}, torch.tensor(3.0), 5],
    ids=repr,
)
def test_other_objects_pass_through_unchanged(value):
    seen = []

    def model(inputs, extra):
        seen.append(extra)
        return Blocks()(inputs)[:, 0]

    attribute(model, constant((2, 3, 12, 12)), None, additional_forward_args=(value,))
    assert len(seen) == 12
    assert all(extra is value for extra in seen)


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


def test_arguments_made_in_inference_mode_work():
    with torch.inference_mode():
        weights, factor = torch.eye(4)[[3, 0]], torch.tensor(2.0)
        found = attribute(
            weighted,
            constant((2, 3, 12, 12)),
            None,
            additional_forward_args=(weights, factor),
        )
    assert [share_inside(m[0], c) for m, c in zip(found, [3, 0], strict=True)] == [1, 1]


# --- perturbations_per_eval, progress ---


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_perturbations_per_eval_bounds_the_forward_and_changes_nothing(game):
    sizes = []

    def model(inputs):
        sizes.append(len(inputs))
        return Blocks()(inputs)

    inputs = varied((3, 3, 12, 12))
    expected = attribute(Blocks(), inputs, CLASSES, game=game)
    for bound in (1, 2, 3, 5, 100):
        sizes.clear()
        options = {"game": game, "perturbations_per_eval": bound}
        assert_same(attribute(model, inputs, CLASSES, **options), expected)
        # Six masks; the hybrid game shows two perturbed inputs for each.
        most = 12 if game == "hybrid" else 6
        least = 2 if game == "hybrid" else 1
        assert max(sizes) <= max(bound, least)
        if bound == 100:
            assert max(sizes) == most


@pytest.mark.parametrize(("bad", "error"), [(0, ValueError), (2.5, TypeError)])
def test_a_bad_perturbations_per_eval_is_an_error(bad, error):
    with pytest.raises(error, match="perturbations_per_eval must be"):
        attribute(Blocks(), constant(), perturbations_per_eval=bad)


def test_no_progress_unless_asked_for(capsys):
    attribute(Blocks(), constant())
    assert capsys.readouterr() == ("", "")


def test_progress_is_on_stderr_and_reaches_its_end(capsys):
    found = attribute(Blocks(), constant(), show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Extremal Perturbation" in err
    assert "8/8" in err
    assert_same(found, attribute(Blocks(), constant()))


class Bar:
    """Stands for a progress bar and counts what it is told."""

    def __init__(self):
        self.steps = self.closed = 0

    def __call__(self, **_):
        return self

    def update(self, n=1):
        self.steps += n

    def close(self):
        self.closed += 1


@pytest.fixture
def bar(monkeypatch):
    bar = Bar()
    monkeypatch.setattr("captum_extremal._base.captum_door.progress", bar)
    return bar


def test_progress_is_closed_after_all_steps(bar):
    attribute(Blocks(), constant(), show_progress=True)
    assert (bar.steps, bar.closed) == (8, 1)


def test_progress_is_closed_on_an_exception(bar):
    with pytest.raises(ZeroDivisionError):
        attribute(NoModel(at=5), constant(), show_progress=True)
    assert (bar.steps, bar.closed) == (3, 1)


def test_progress_is_closed_on_an_interrupt(bar):
    class Interrupted(NoModel):
        def forward(self, inputs):
            if self.calls == 4:
                raise KeyboardInterrupt
            self.calls += 1
            return self.blocks(inputs)

    model = Interrupted()
    before = traces(model)
    with pytest.raises(KeyboardInterrupt):
        attribute(model, constant(), show_progress=True)
    assert (bar.steps, bar.closed) == (2, 1)
    assert traces(model) == before


# --- batches ---


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_a_batch_gives_what_its_examples_give_one_by_one(game):
    model, inputs = ConvNet(3).eval(), varied((3, 3, 12, 12))
    labels = [2, 0, 1]
    found = attribute(model, inputs, labels, game=game)
    for index, label in enumerate(labels):
        alone = attribute(model, inputs[index : index + 1], label, game=game)
        assert_same(found[index : index + 1], alone)


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


# --- gradient modes ---


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_around_it(mode):
    model = ConvNet(3).eval()
    inputs = varied((2, 3, 12, 12))
    expected = attribute(model, inputs)
    before = traces(model, inputs)
    with mode():
        found = attribute(model, inputs)
        inside = varied((2, 3, 12, 12))
        assert_same(attribute(model, inside), expected)
    assert_same(found, expected)
    assert traces(model, inputs) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_is_put_back_on_an_exception(mode):
    model = NoModel(at=4)
    with mode():
        before = traces(model)
        with pytest.raises(ZeroDivisionError):
            attribute(model, constant())
        assert traces(model) == before


def test_inputs_and_targets_made_in_inference_mode_work_outside():
    with torch.inference_mode():
        inputs, target = constant((2, 3, 12, 12)), torch.tensor([3, 0])
    found = attribute(Blocks(), inputs, target)
    assert_same(found, attribute(Blocks(), constant((2, 3, 12, 12)), [3, 0]))
    assert not found.is_inference()


def inference_blocks():
    return Blocks()


def inference_norm():
    return nn.Sequential(nn.BatchNorm2d(3, affine=False).eval(), Blocks())


@pytest.mark.parametrize("make", [inference_blocks, inference_norm])
@pytest.mark.parametrize("inside", [False, True])
def test_a_model_made_in_inference_mode_is_one_clear_error(make, inside):
    with torch.inference_mode():
        model = make()
    context = torch.inference_mode() if inside else contextlib.nullcontext()
    with context, pytest.raises(RuntimeError, match="was made inside torch"):
        attribute(model, constant())


def test_inference_buffers_alone_are_one_clear_error():
    with torch.inference_mode():
        norm = nn.BatchNorm2d(3, affine=False).eval()
    with pytest.raises(RuntimeError, match=r"was made inside torch\.inference_mode"):
        attribute(nn.Sequential(norm, Blocks()), varied())


def test_inputs_get_no_gradient_and_the_result_no_graph():
    inputs = constant().requires_grad_()
    outer = inputs * 2
    found = attribute(Blocks(), outer)
    assert found.grad_fn is None
    assert inputs.grad is None
    outer.sum().backward()  # the caller's own graph is whole
    assert torch.equal(inputs.grad, torch.full_like(inputs, 2))


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


def test_autocast_around_the_call_leaves_the_masks_alone():
    seen = []

    def model(inputs):
        seen.append(inputs.dtype)
        return Blocks()(inputs)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method_of(model).optimize(constant(), 1, (0.25,))
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.float32}
    assert result.masks.dtype == torch.float32
    assert_same(
        result.masks, method_of(Blocks()).optimize(constant(), 1, (0.25,)).masks
    )


# --- sizes ---

SIZES = {
    "10x10 grey": (2, 1, 10, 10),
    "not square": (1, 3, 9, 20),
    "odd": (1, 2, 7, 11),
    "1-D": (2, 2, 40),
    "3-D": (2, 1, 6, 8, 10),
    "many channels": (1, 17, 8, 8),
}
# Here one kernel covers more than a block, so a smooth mask cannot choose one.
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


def test_tuples_of_different_sizes_get_a_mask_each():
    model = TwoInputs()
    inputs = constant((2, 1, 12, 12)), constant((2, 3, 8, 16))
    found = attribute(model, inputs, [1, 0])
    assert [a.shape for a in found] == [i.shape for i in inputs]
    for attribution in found:
        assert share_inside(attribution[0, 0], 1) >= 0.9
        assert share_inside(attribution[1, 0], 0) >= 0.9
    for index, label in enumerate([1, 0]):
        alone = attribute(model, tuple(i[index : index + 1] for i in inputs), label)
        for one, all_of_them in zip(alone, found, strict=True):
            assert_same(all_of_them[index : index + 1], one)


def test_tuples_may_mix_numbers_of_axes():
    inputs = constant((1, 1, 30)), constant((1, 3, 8, 8))
    found = attribute(TwoInputs(axes=(1, 2)), inputs, 1)
    assert share_inside(found[0][0, 0], 1) == 1
    assert share_inside(found[1][0, 0], 1) == 1


def test_tuples_with_arguments_and_chunks():
    def model(first, second, weights):
        return (TwoInputs()(first, second) * weights).sum(dim=1)

    inputs = constant((2, 1, 12, 12)), constant((2, 3, 8, 16))
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = attribute(
        model, inputs, None, additional_forward_args=weights, perturbations_per_eval=3
    )
    for mine, expected in zip(
        found, attribute(TwoInputs(), inputs, [1, 0]), strict=True
    ):
        assert_same(mine, expected)


# --- kinds of models ---


@pytest.mark.parametrize("make", ["script", "trace", "function", "method"])
def test_every_kind_of_model_works(make):
    model = ConvNet(3).eval()
    inputs = varied((2, 3, 12, 12))
    expected = attribute(model, inputs, [1, 2])
    kind = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, inputs[:1]),
        "function": lambda: lambda x: model(x),
        "method": lambda: model.forward,
    }[make]()
    assert_same(attribute(kind, inputs, [1, 2]), expected)


def test_a_scripted_model_in_training_warns_and_counts_nothing():
    model = torch.jit.script(ConvNet().train())
    before = traces(model)
    with pytest.warns(UserWarning, match="forward_func is in training mode"):
        attribute(model, varied((2, 1, 10, 10)))
    assert traces(model) == before


@pytest.mark.filterwarnings("ignore:forward_func is in training mode")
def test_statistics_of_an_instance_norm_stay_as_they_were():
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    model = nn.Sequential(norm, Blocks()).train()
    before = traces(model)
    attribute(model, varied((2, 3, 12, 12)))
    assert traces(model) == before


def test_models_with_operations_in_place():
    def model(inputs):
        return Blocks()(inputs.mul_(2.0).relu_())

    inputs = constant((2, 3, 12, 12))
    found = attribute(model, inputs, 1)
    assert_same(found, attribute(Blocks(), 2 * inputs, 1))
    assert torch.equal(inputs, constant((2, 3, 12, 12)))


# --- the global generators ---


def test_the_global_generator_neither_moves_nor_matters():
    solver = GradientSolver(iterations=8, jitter=0.2)
    method = method_of(ConvNet(3).eval(), solver=solver)
    inputs = varied()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = method.attribute(inputs, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(method.attribute(inputs, 0), one)
    assert not torch.equal(method.attribute(inputs, 0, seed=1), one)


# --- under Captum's own tools ---


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(nt_type):
    method, inputs = method_of(Blocks()), constant((2, 3, 12, 12))
    tunnel = NoiseTunnel(method)
    found = tunnel.attribute(
        inputs, nt_type=nt_type, nt_samples=3, stdevs=1e-7, target=[3, 0], areas=AREAS
    )
    alone = method.attribute(inputs, [3, 0], AREAS)
    expected = {
        "smoothgrad": alone,
        "smoothgrad_sq": alone.square(),
        "vargrad": torch.zeros_like(alone),
    }[nt_type]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not inputs.requires_grad


def test_noise_tunnel_averages_over_noise():
    torch.manual_seed(0)
    method, inputs = method_of(ConvNet(3).eval()), varied()
    tunnel = NoiseTunnel(method)
    options = {"stdevs": 0.3, "target": 0, "areas": AREAS}
    noisy = tunnel.attribute(inputs, nt_samples=4, **options)
    assert noisy.shape == inputs.shape
    assert not torch.allclose(noisy, method.attribute(inputs, 0, AREAS), atol=1e-3)


def test_noise_tunnel_with_tuples_arguments_and_parts():
    def model(first, second, weights):
        return (TwoInputs()(first, second) * weights).sum(dim=1)

    inputs = constant((2, 1, 12, 12)), constant((2, 3, 8, 16))
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    method = method_of(model)
    found = NoiseTunnel(method).attribute(
        inputs,
        nt_samples=3,
        nt_samples_batch_size=2,
        stdevs=(1e-7, 1e-7),
        areas=AREAS,
        additional_forward_args=weights,
    )
    alone = method.attribute(inputs, None, AREAS, weights)
    for smooth, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(smooth, expected, rtol=1e-3, atol=1e-3)


def test_infidelity():
    model, inputs = Blocks(), varied((2, 3, 12, 12))
    attributions = attribute(model, inputs, [3, 0])
    step = 0.1 * varied((2, 3, 12, 12)).flip(0)

    def perturb(x):
        times = len(x) // 2
        steps = step.repeat_interleave(times, dim=0)
        return steps, x - steps

    found = infidelity(
        model, perturb, inputs, attributions, target=[3, 0], n_perturb_samples=2
    )
    # The model is linear, so its fall is the model of the step.
    predicted = (step * attributions).sum(dim=(1, 2, 3))
    real = model(step)[[0, 1], [3, 0]]
    torch.testing.assert_close(found, (predicted - real).square(), rtol=1e-4, atol=0)


def test_infidelity_of_tuples():
    inputs = varied((2, 1, 12, 12)), varied((2, 3, 8, 16))
    attributions = attribute(TwoInputs(), inputs, 0)

    def perturb(both):
        half = tuple(x * 0.5 for x in both)
        return half, half

    found = infidelity(TwoInputs(), perturb, inputs, attributions, target=0)
    predicted = sum(
        (0.5 * x * a).flatten(1).sum(dim=1)
        for x, a in zip(inputs, attributions, strict=True)
    )
    real = 0.5 * TwoInputs()(*inputs)[:, 0]
    expected = (predicted - real).square().detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_sensitivity_max():
    method, inputs = method_of(ConvNet(3).eval()), varied((2, 3, 12, 12))
    options = {"n_perturb_samples": 2, "target": [2, 0], "areas": list(AREAS)}
    still = sensitivity_max(method.attribute, inputs, perturb_radius=0.0, **options)
    torch.testing.assert_close(still, torch.zeros(2), rtol=0, atol=1e-4)
    moved = sensitivity_max(method.attribute, inputs, perturb_radius=0.3, **options)
    assert moved.shape == (2,)
    assert (moved > 1e-2).all()


def test_sensitivity_max_of_tuples_and_channels_last():
    inputs = varied((2, 1, 12, 12)), varied((2, 3, 8, 16))
    found = sensitivity_max(
        method_of(TwoInputs()).attribute,
        inputs,
        perturb_radius=0.0,
        n_perturb_samples=2,
        target=torch.tensor([1, 0]),
    )
    torch.testing.assert_close(found, torch.zeros(2), rtol=0, atol=1e-4)
    found = sensitivity_max(
        method_of(Blocks()).attribute,
        varied((2, 3, 12, 12)).to(memory_format=torch.channels_last),
        perturb_radius=0.0,
        n_perturb_samples=2,
        target=0,
    )
    torch.testing.assert_close(found, torch.zeros(2), rtol=0, atol=1e-4)


# --- memory ---


def test_fifty_calls_leave_nothing_behind():
    model = ConvNet().eval()
    method = method_of(model, solver=GradientSolver(iterations=2))
    inputs = varied((1, 1, 10, 10))

    def tensors():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    method.attribute(inputs, 0)
    before = tensors()
    for _ in range(50):
        method.attribute(inputs, 0)
    assert tensors() <= before


@pytest.mark.filterwarnings("ignore:forward_func is in training mode")
def test_a_failed_call_leaves_nothing_behind():
    method = method_of(NoModel(at=5))
    inputs = constant()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            method.attribute(inputs, 0)
    alive = weakref.ref(inputs)
    del inputs
    gc.collect()
    assert alive() is None


def test_the_method_keeps_neither_inputs_nor_results():
    method, inputs = method_of(Blocks()), constant()
    found = method.attribute(inputs, 0)
    alive = weakref.ref(inputs), weakref.ref(found)
    del inputs, found
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_the_model_is_not_kept_alive_by_a_result():
    model = Blocks()
    result = method_of(model).optimize(constant(), 0, AREAS)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert result.masks.shape == (1, 2, 1, 12, 12)


def test_nothing_is_printed():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        method_of(Blocks()).optimize(constant(), 0, AREAS)
    assert (out.getvalue(), err.getvalue()) == ("", "")
