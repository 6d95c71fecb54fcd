"""What Captum expects of a drop-in method, for each of the other methods."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from captum.attr import (
    Attribution,
    FeatureAblation,
    LayerAttribution,
    NoiseTunnel,
    PerturbationAttribution,
)
from torch import nn

from captum_extremal.peers import RISE, ExcitationBackprop, MeaningfulPerturbation
from captum_extremal.perturbations.levels import FadePerturbation
from tiny_models import (
    Blocks,
    ConvNet,
    NoModel,
    TwoInputs,
    constant,
    traces,
    varied,
)

OPTIONS = {
    ExcitationBackprop: {},
    RISE: {"num_masks": 60, "grid_size": 4},
    MeaningfulPerturbation: {
        "iterations": 20,
        "l1_weight": 0.1,
        "mask_size": 12,
        "mask_sigma": 0.5,
    },
}
PERTURBING = (RISE, MeaningfulPerturbation)


@pytest.fixture(params=OPTIONS, ids=lambda method: method.__name__)
def method(request):
    return request.param


@pytest.fixture(params=PERTURBING, ids=lambda method: method.__name__)
def perturbing(request):
    return request.param


def first_layer(model):
    """The layer that sees the inputs, of a model or of what calls one."""
    modules = [m for m in model.modules() if not list(m.children())]
    return modules[0]


def made(method, model, layer=None):
    if method is ExcitationBackprop:
        return method(model, layer or first_layer(model))
    return method(model, FadePerturbation())


def attribute(method, model, inputs, target=0, layer=None, **options):
    if method is ExcitationBackprop:
        options = {"attribute_to_layer_input": True} | options
    settings = OPTIONS[method] | options
    return made(method, model, layer).attribute(inputs, target, **settings)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def best_block(attribution):
    """The block, in reading order, with the highest mean: (C, *S) -> its number."""
    axes = attribution.dim() - 1
    return int(Blocks(axes, scale=1.0)(attribution[None].float()).argmax())


# --- the class ---


def test_what_the_method_says_of_itself(method):
    explainer = made(method, Blocks())
    assert isinstance(explainer, Attribution)
    kind = LayerAttribution if method is ExcitationBackprop else PerturbationAttribution
    assert isinstance(explainer, kind)
    assert explainer.multiplies_by_inputs is False
    assert explainer.has_convergence_delta() is False
    names = {"Excitation Backprop", "RISE", "Meaningful Perturbation"}
    assert explainer.get_name() in names
    text = f"^attribute_future is not implemented for {method.__name__}$"
    with pytest.raises(NotImplementedError, match=text):
        explainer.attribute_future()


def test_the_model_alone_suffices(perturbing):
    model = Blocks()
    assert perturbing(model).forward_func is model
    with pytest.raises(TypeError, match="forward_func must be callable, got 3"):
        perturbing(3)
    with pytest.raises(TypeError, match="perturbation must be an object with a levels"):
        perturbing(model, "blur")


def test_attribute_is_logged_and_can_be_unwrapped(method):
    explainer = made(method, Blocks())
    bare = method.attribute.__wrapped__
    found = bare(explainer, constant(), 0, **OPTIONS[method])
    assert_same(found, explainer.attribute(constant(), 0, **OPTIONS[method]))


def pickled(item):
    return pickle.loads(pickle.dumps(item))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_the_method_can_be_copied_and_pickled(method, copied):
    explainer = made(method, Blocks())
    found = copied(explainer).attribute(constant(), 1, **OPTIONS[method])
    assert_same(found, explainer.attribute(constant(), 1, **OPTIONS[method]))


# --- right, on a model that is known ---


@pytest.mark.parametrize("target", range(4))
def test_it_finds_the_block_that_the_model_sees(method, target):
    options = {} if method is not RISE else {"num_masks": 300}
    found = attribute(method, Blocks(), constant(), target, **options)
    assert best_block(found[0]) == target
    share = found[0].clamp(min=0) / found.clamp(min=0).sum()
    blocks = Blocks(scale=108.0)(share[None])[0]
    least = {RISE: 0.26, ExcitationBackprop: 0.999, MeaningfulPerturbation: 0.7}
    assert blocks[target] > least[method]


# --- nothing is left behind ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:forward_func is in training mode")
def test_the_model_and_the_inputs_stay_as_they_were(method, training):
    if method is ExcitationBackprop and training:
        pytest.skip("an error, tested with it")
    model = ConvNet().train(training)
    model.conv.weight.requires_grad_(False)
    model.linear.weight.grad = torch.full_like(model.linear.weight, 3.0)
    inputs = varied((2, 1, 10, 10)).requires_grad_()
    inputs.grad = torch.full_like(inputs, 2.0)
    before = traces(model, inputs)
    found = attribute(method, model, inputs)
    assert not found.requires_grad
    assert traces(model, inputs) == before


@pytest.mark.parametrize("at", [0, 2, 12])
def test_everything_stays_as_it_was_when_the_model_fails(perturbing, at):
    # Meaningful perturbation starts with 11 forwards, RISE has 60 with one mask each.
    model = NoModel(at)
    inputs = constant().requires_grad_()
    before = traces(model, inputs)
    with pytest.raises(ZeroDivisionError, match="out of order"):
        attribute(perturbing, model, inputs, perturbations_per_eval=1)
    assert model.calls == at + 1
    assert traces(model, inputs) == before


def test_everything_stays_as_it_was_when_the_model_fails_after_the_layer():
    class Fails(ConvNet):
        def forward(self, inputs):
            super().forward(inputs)
            torch.rand(1)
            raise ZeroDivisionError("the model is out of order")

    for make in (Fails, lambda: NoModel(0)):
        model, inputs = make().eval(), constant((1, 1, 10, 10)).requires_grad_()
        before = traces(model, inputs)
        with pytest.raises(ZeroDivisionError, match="out of order"):
            attribute(ExcitationBackprop, model, inputs)
        assert traces(model, inputs) == before


def test_a_training_model_warns_once(perturbing):
    explainer = made(perturbing, ConvNet().train())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            explainer.attribute(varied((2, 1, 10, 10)), 0, **OPTIONS[perturbing])
    texts = [str(w.message)[:34] for w in caught]
    assert texts == ["forward_func is in training mode ("]
    assert caught[0].filename == __file__


# --- what goes in and what comes out ---


def test_a_tensor_gives_a_tensor_and_a_tuple_a_tuple(perturbing):
    alone = attribute(perturbing, Blocks(), constant())
    inside = attribute(perturbing, Blocks(), (constant(),))
    assert isinstance(inside, tuple)
    assert len(inside) == 1
    assert_same(inside[0], alone)


def test_two_inputs_get_an_attribution_each(perturbing):
    inputs = constant((2, 3, 12, 12)), constant((2, 1, 8, 10))
    options = {"num_masks": 300} if perturbing is RISE else {}
    found = attribute(perturbing, TwoInputs(), inputs, 1, **options)
    assert [tuple(f.shape) for f in found] == [(2, 3, 12, 12), (2, 1, 8, 10)]
    assert [best_block(part[0]) for part in found] == [1, 1]


def test_two_inputs_of_a_layer_method():
    model = TwoInputs()
    inputs = constant((2, 3, 12, 12)), constant((2, 1, 8, 10))
    found = attribute(ExcitationBackprop, model, inputs, 1, layer=model.second.pool)
    assert found.shape == (2, 1, 8, 10)
    # The other input's half is lost to this one.
    assert_same(found.flatten(1).sum(1), torch.tensor([0.5, 0.5]))


def test_a_list_of_inputs_is_captums_assertion_error(method):
    with pytest.raises(AssertionError, match=r"must be a torch\.Tensor or a tuple"):
        attribute(method, Blocks(), [constant()])


def test_no_inputs_are_an_error(method):
    with pytest.raises(ValueError, match="inputs must hold at least one tensor"):
        attribute(method, Blocks(), ())


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[:1, :1].expand(2, 3, 12, 12),
        nn.Parameter,
    ],
    ids=["plain", "channels_last", "expanded", "leaf"],
)
def test_the_attribution_has_a_plain_layout(method, make, device):
    inputs = make(constant((2, 3, 12, 12)).to(device))
    found = attribute(method, Blocks().to(device), inputs)
    assert found.shape == inputs.shape
    assert found.device == inputs.device
    assert found.dtype == inputs.dtype
    assert not found.requires_grad
    assert found.is_contiguous()
    assert_same(found.cpu(), attribute(method, Blocks(), constant((2, 3, 12, 12))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_attribution_has_the_dtype_of_the_inputs(method, dtype):
    found = attribute(method, Blocks(scale=3.0).to(dtype), constant().to(dtype))
    assert found.dtype == dtype
    expected = attribute(method, Blocks(scale=3.0), constant())
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_signals_images_and_volumes(method, axes):
    inputs = constant((2, 2, *[8] * axes))
    options = {} if method is not RISE else {"num_masks": 300}
    found = attribute(method, Blocks(axes), inputs, 1, **options)
    assert found.shape == inputs.shape
    assert best_block(found[0]) == 1


def test_what_comes_back_shares_no_memory_with_the_caller(method):
    inputs = constant()
    attribute(method, Blocks(), inputs).zero_()
    assert torch.equal(inputs, constant())


# --- targets and arguments ---


@pytest.mark.parametrize(
    "target", [[3, 0, 2], torch.tensor([3, 0, 2]), [(3,), (0,), (2,)]], ids=repr
)
def test_each_example_has_its_own_target(method, target):
    inputs = varied((3, 3, 12, 12))
    found = attribute(method, Blocks(), inputs, target)
    for index, label in enumerate([3, 0, 2]):
        alone = attribute(method, Blocks(), inputs[index : index + 1], label)
        assert_same(found[index : index + 1], alone)


@pytest.mark.parametrize("target", [2, torch.tensor(2), torch.tensor([2]), (2,)])
def test_one_target_for_all_examples(method, target):
    inputs = varied((3, 3, 12, 12))
    assert_same(
        attribute(method, Blocks(), inputs, target),
        attribute(method, Blocks(), inputs, [2, 2, 2]),
    )


def test_no_target_is_one_score_an_example(method):
    model = Blocks()

    def inner(x):
        return model(x)[:, 1]

    found = attribute(method, inner, constant(), None, layer=model.pool)
    assert_same(found, attribute(method, model, constant(), 1))
    with pytest.raises((ValueError, AssertionError)):
        attribute(method, model, constant(), None)


@pytest.mark.parametrize("target", [4, (1, 1), [0], "dog", 1.0], ids=repr)
def test_a_bad_target_stays_captums_error(method, target):
    model, inputs = Blocks(), constant((4, 3, 12, 12))
    with pytest.raises((AssertionError, IndexError, RuntimeError)) as captums:
        FeatureAblation(model).attribute(inputs, target=target)
    before = traces(model, inputs)
    with pytest.raises(captums.type):
        attribute(method, model, inputs, target)
    assert traces(model, inputs) == before


class Weighted(nn.Module):
    """The sum of the blocks' scores, weighted for each example: (K, 4) weights."""

    def __init__(self):
        super().__init__()
        self.blocks = Blocks()

    def forward(self, inputs, weights, factor=1.0):
        return (self.blocks(inputs) * weights).sum(dim=1) * factor


def test_an_argument_with_one_entry_an_example_goes_with_its_example(method):
    weights = torch.eye(4)[[3, 0, 2]].requires_grad_()
    found = attribute(
        method,
        Weighted(),
        varied((3, 3, 12, 12)),
        None,
        additional_forward_args=(weights, 1.0),
    )
    expected = attribute(method, Blocks(), varied((3, 3, 12, 12)), [3, 0, 2])
    assert_same(found, expected)


# --- batches, chunks, progress ---


def test_a_batch_gives_what_its_examples_give_one_by_one(method):
    model, inputs, labels = ConvNet(3).eval(), varied((3, 3, 12, 12)), [2, 0, 1]
    found = attribute(method, model, inputs, labels)
    for index, label in enumerate(labels):
        alone = attribute(method, model, inputs[index : index + 1], label)
        assert_same(found[index : index + 1], alone)


def test_perturbations_per_eval_bounds_the_forward_and_changes_nothing(perturbing):
    sizes = []

    def model(inputs):
        sizes.append(len(inputs))
        return Blocks()(inputs)

    inputs = varied((3, 3, 12, 12))
    expected = attribute(perturbing, Blocks(), inputs, [3, 0, 2])
    for bound in (1, 2, 5, 1000):
        sizes.clear()
        found = attribute(
            perturbing, model, inputs, [3, 0, 2], perturbations_per_eval=bound
        )
        assert_same(found, expected)
        assert max(sizes) <= bound
    assert max(sizes) == (180 if perturbing is RISE else 3)
    with pytest.raises(ValueError, match="perturbations_per_eval must be at least 1"):
        attribute(perturbing, model, inputs, perturbations_per_eval=0)


def test_progress_is_shown_when_asked_for(perturbing, capsys):
    attribute(perturbing, Blocks(), constant())
    assert capsys.readouterr() == ("", "")
    attribute(perturbing, Blocks(), constant(), show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("4/4" if perturbing is RISE else "20/20") in err


# --- gradient modes ---


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_around_it(method, mode):
    model, inputs = ConvNet(3).eval(), varied((2, 3, 12, 12))
    expected = attribute(method, model, inputs)
    before = traces(model, inputs)
    with mode():
        found = attribute(method, model, inputs)
        assert_same(attribute(method, model, varied((2, 3, 12, 12))), expected)
        assert traces(model, inputs) | {"grad enabled": 0, "inference mode": 0} == (
            before | {"grad enabled": 0, "inference mode": 0}
        )
    assert_same(found, expected)
    assert not found.is_inference()


# --- Captum's own users ---


def test_noise_tunnel_runs_it(perturbing):
    tunnel = NoiseTunnel(made(perturbing, Blocks()))
    options = OPTIONS[perturbing]
    found = tunnel.attribute(
        constant((2, 3, 12, 12)), nt_samples=3, stdevs=0.01, target=1, **options
    )
    assert found.shape == (2, 3, 12, 12)
    assert best_block(found[0]) == 1


def test_layer_attribution_enlarges_it():
    model = ConvNet(3).eval()
    found = ExcitationBackprop(model, model.conv).attribute(varied(), 1)
    assert found.shape == (1, 4, 12, 12)
    large = LayerAttribution.interpolate(found.sum(1, keepdim=True), (24, 24))
    assert large.shape == (1, 1, 24, 24)


def test_the_layer_and_its_input_are_told_apart():
    model = ConvNet(3).eval()
    method = ExcitationBackprop(model, model.conv)
    found = method.attribute(varied(), 1, attribute_to_layer_input=True)
    assert found.shape == (1, 3, 12, 12)


def test_the_users_hooks_fire_and_stay(method):
    model, seen = Blocks(), []
    model.pool.register_forward_hook(lambda *_: seen.append("forward"))
    before = traces(model)
    attribute(method, model, constant())
    forwards = {ExcitationBackprop: 1, RISE: 4, MeaningfulPerturbation: 11 + 20}
    assert len(seen) == forwards[method]
    assert traces(model) == before
