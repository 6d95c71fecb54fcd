"""Excitation backprop against its formula, rule by rule, and on whole networks."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from captum_extremal.models import load_demo
from captum_extremal.peers import ExcitationBackprop
from reference import peers as reference
from tiny_models import TwoInputs, constant, traces


def mwp(model, layer, inputs, target=0, **options):
    return ExcitationBackprop(model, layer).attribute(inputs, target, **options)


def assert_close(found, expected, **tolerance):
    expected = torch.as_tensor(expected, dtype=found.dtype).reshape(found.shape)
    torch.testing.assert_close(
        found, expected, **tolerance or {"rtol": 1e-5, "atol": 1e-6}
    )


class Then(nn.Module):
    """Marks where the walk ends (`start`), then runs a function of its output."""

    def __init__(self, function, *modules):
        super().__init__()
        self.start = nn.Identity()
        self.held = nn.ModuleList(modules)
        self.function = function

    def forward(self, inputs):
        return self.function(self.start(inputs), *self.held)


def winners(function, inputs, target=0, *modules, **options):
    """Probabilities of the inputs of a function."""
    model = Then(function, *modules).eval()
    return mwp(model, model.start, torch.as_tensor(inputs), target, **options)


# --- the formula ---


def test_a_linear_layer_by_hand():
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[3.0, 1.0, -1.0], [0.0, 2.0, 2.0]])
    inputs = torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.5, 3.0]])
    # 3 : 1 of the first; 0.5 alone excites the first class in the second example.
    expected = [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]
    assert_close(winners(lambda x, f: f(x), inputs, 0, layer), expected)
    # 1 * 2 : 2 * 2 and 0.5 * 2 : 3 * 2.
    expected = [[0.0, 1 / 3, 2 / 3], [0.0, 1 / 7, 6 / 7]]
    assert_close(winners(lambda x, f: f(x), inputs, 1, layer), expected)


def test_layer_after_layer_as_in_the_paper():
    first, second, third = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)
    model = nn.Sequential(
        nn.Identity(), first, nn.ReLU(), second, nn.ReLU(), third
    ).double()
    inputs = torch.rand(1, 5, dtype=torch.float64)
    weights = [layer.weight.detach().numpy() for layer in (first, second, third)]
    activations = {
        index: model[: index + 1](inputs)[0].detach().numpy() for index in (0, 2, 4)
    }
    above = np.array([0.0, 0.0, 1.0])
    for index, weight in zip((4, 2, 0), reversed(weights), strict=True):
        above = reference.winning_probability(activations[index], weight, above)
        found = mwp(model, model[index], inputs, 2)
        assert above.sum() == pytest.approx(1)
        assert_close(found, above, rtol=1e-10, atol=1e-12)


def test_a_convolutional_network_as_in_the_paper():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).double()  # fmt: skip
    inputs = torch.rand(1, 2, 11, 11, dtype=torch.float64)
    with torch.no_grad():
        steps = [inputs]
        for module in model:
            steps.append(module(steps[-1]))
    arrays = [step[0].numpy() for step in steps]
    above = np.array([0.0, 1.0, 0.0])
    weight = model[7].weight.detach().numpy()
    above = reference.winning_probability(arrays[7].ravel(), weight, above)
    pool = np.kron(np.eye(4), np.full((1, 4), 0.25))
    above = reference.winning_probability(arrays[5].ravel(), pool, above)
    assert_close(mwp(model, model[4], inputs, 1), above, rtol=1e-9, atol=1e-12)
    matrix = reference.convolution_matrix(
        model[3].weight.detach().numpy(), (3, 3), 1, 0
    )
    above = reference.winning_probability(arrays[3].ravel(), matrix, above)
    above = reference.max_pool_probability(arrays[2], above.reshape(3, 3, 3), 2)
    assert_close(mwp(model, model[1], inputs, 1), above, rtol=1e-9, atol=1e-12)
    matrix = reference.convolution_matrix(
        model[0].weight.detach().numpy(), (11, 11), 2, 1
    )
    above = reference.winning_probability(arrays[0].ravel(), matrix, above.ravel())
    found = mwp(model, model[0], inputs, 1, attribute_to_layer_input=True)
    assert_close(found, above, rtol=1e-9, atol=1e-12)


def test_contrastive_is_the_difference_to_the_dual_class():
    model = nn.Sequential(
        nn.Identity(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.Identity()
    )
    dual = nn.Sequential(*model[:3], nn.Linear(6, 3))
    dual[3].weight.data = -model[3].weight.data
    inputs = torch.rand(2, 5)
    for layer in (0, 2):
        plain = mwp(model, model[layer], inputs, 1)
        expected = plain - mwp(dual, dual[layer], inputs, 1)
        found = mwp(model, model[layer], inputs, 1, contrastive=True)
        assert_close(found, expected)
        assert not torch.allclose(found, plain)


def test_the_dual_walk_leaves_no_negated_weights():
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 3))
    inputs, before = torch.rand(2, 5), model[1].weight.detach().clone()
    first = mwp(model, model[0], inputs)
    mwp(model, model[0], inputs, contrastive=True)
    assert torch.equal(model[1].weight, before)
    assert torch.equal(mwp(model, model[0], inputs), first)


def test_probability_that_nothing_excites_is_lost():
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[-1.0, 2.0]])
    found = winners(lambda x, f: f(x), torch.tensor([[1.0, 0.0], [1.0, 3.0]]), 0, layer)
    assert_close(found, [[0.0, 0.0], [0.0, 1.0]])


# --- rule by rule ---


@pytest.mark.parametrize(
    "activation",
    [
        F.relu, torch.relu, torch.Tensor.relu, F.relu6, F.silu, F.gelu, F.hardswish,
        torch.sigmoid, F.leaky_relu, nn.ReLU(inplace=True), nn.ReLU6(inplace=True),
        nn.SiLU(inplace=True), nn.Hardswish(), torch.relu_,
        lambda x: x.clamp(min=0), lambda x: F.dropout(x, 0.5, training=False),
    ],
)  # fmt: skip
def test_an_activation_hands_everything_on(activation):
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 1.0]])

    def function(x, layer):
        return layer(activation(x))

    inputs = torch.tensor([[1.0, 2.0, 0.5]])
    strength = activation(inputs.clone()) * layer.weight.detach()
    assert_close(winners(function, inputs, 0, layer), strength / strength.sum())


def test_negative_activations_count_as_zero():
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.ones(1, 3)
    inputs = torch.tensor([[-1.0, 2.0, 2.0]])
    for function in (lambda x, f: f(F.silu(x)), lambda x, f: f(x)):
        assert_close(winners(function, inputs, 0, layer), [[0.0, 0.5, 0.5]])


@pytest.mark.parametrize("add", ["+", "add", "+=", "add_ without its result", "alpha"])
def test_a_sum_is_shared_by_the_activations(add):
    def function(x):
        first, second = F.relu(x[:, :2]), F.relu(x[:, 2:])
        if add == "+":
            return first + second
        if add == "add":
            return torch.add(first, second)
        if add == "alpha":
            return torch.add(first, second, alpha=3)
        if add == "+=":
            first += second
            return first
        first.add_(second)
        return first

    inputs = torch.tensor([[1.0, 5.0, 3.0, -7.0]])
    expected = [[0.25, 0.0, 0.75, 0.0]] if add != "alpha" else [[0.1, 0.0, 0.9, 0.0]]
    assert_close(winners(function, inputs, 0), expected)
    assert_close(winners(function, inputs, 1), [[0.0, 1.0, 0.0, 0.0]])


def test_what_goes_past_the_layer_takes_its_share():
    model = Then(lambda x: x)
    side = torch.tensor([[3.0, 1.0]])

    def forward(inputs):
        return model(inputs) + side

    found = ExcitationBackprop(forward, model.start).attribute(torch.ones(1, 2), 0)
    assert_close(found, [[0.25, 0.0]])


def test_a_number_that_is_added_is_a_bias():
    assert_close(winners(lambda x: x + 3, [[1.0, 2.0]], 1), [[0.0, 1.0]])


def test_the_share_of_another_input_is_lost_to_this_one():
    model = TwoInputs()
    inputs = constant((2, 3, 12, 12)), constant((2, 1, 8, 10))
    found = mwp(model, model.second.pool, inputs, 1, attribute_to_layer_input=True)
    assert found.shape == (2, 1, 8, 10)
    assert_close(found.flatten(1).sum(1), [0.5, 0.5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["x + b", "b + x", "x + view", "add alpha"])
def test_a_parameter_that_is_added_is_a_bias(way):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.start = nn.Identity()
            self.bias = nn.Parameter(torch.tensor([3.0, 9.0]))

        def forward(self, x):
            x, b = self.start(x), self.bias
            if way == "x + view":
                return x + b.reshape(1, 2)[:, :]
            if way == "add alpha":
                return torch.add(x, b, alpha=-0.1)
            return x + b if way == "x + b" else b + x

    model = Biased().eval()
    assert_close(mwp(model, model.start, torch.tensor([[1.0, 2.0]]), 1), [[0.0, 1.0]])


def test_a_parameter_with_more_neurons_than_what_it_is_added_to_takes_its_share():
    side = nn.Parameter(torch.tensor([3.0, 9.0]))
    model = Then(lambda x, *_: x + side)
    assert_close(mwp(model, model.start, torch.tensor([[1.0]]), 1), [[0.1]])


def test_a_gate_is_a_weight():
    gate = nn.Linear(2, 2)

    def function(x, gate):
        pooled = F.adaptive_avg_pool1d(x, 1)
        gates = torch.sigmoid(gate(pooled.flatten(1)))[:, :, None]
        return (x * gates).mean(2).sum(1, keepdim=True)

    inputs = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
    strength = inputs * torch.sigmoid(gate(inputs.mean(2)))[:, :, None].detach()
    assert_close(winners(function, inputs, 0, gate), strength / strength.sum())


def test_a_scale_is_a_weight_on_either_side():
    scale = torch.tensor([2.0, -1.0, 1.0])
    inputs = [[1.0, 1.0, 2.0]]
    expected = [[0.5, 0.0, 0.5]]
    for function in (lambda x: x * scale, lambda x: scale * x, lambda x: x.mul_(scale)):
        found = winners(lambda x, f=function: f(x).sum(1, keepdim=True), inputs)
        assert_close(found, expected)
    assert_close(winners(lambda x: 2 * x, inputs, 2), [[0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (lambda x: F.max_pool1d(x, 3), [0.0, 0.0, 1.0]),
        (lambda x: F.adaptive_max_pool1d(x, 1), [0.0, 0.0, 1.0]),
        (lambda x: F.avg_pool1d(x, 3), [0.2, 0.0, 0.8]),
        (lambda x: F.adaptive_avg_pool1d(x, 1), [0.2, 0.0, 0.8]),
        (lambda x: x.mean(2, keepdim=True), [0.2, 0.0, 0.8]),
        (lambda x: torch.mean(x, dim=2), [0.2, 0.0, 0.8]),
        (lambda x: x.sum(2), [0.2, 0.0, 0.8]),
        (lambda x: F.interpolate(x, size=1, mode="linear"), [0.0, 0.0, 0.0]),
    ],
)
def test_pooling(pool, expected):
    found = winners(lambda x: pool(x).flatten(1), [[[1.0, -2.0, 4.0]]])
    assert_close(found, [[expected]])


def test_neurons_that_are_repeated_win_what_their_copies_win():
    def function(x):
        padded = F.pad(x[:, None, None], (1, 1, 0, 0), mode="replicate")
        repeated = padded.flatten(1)[:, [0, 1, 1, 3]].expand(1, 4)
        return repeated.mean(1, keepdim=True)

    assert_close(winners(function, [[1.0, 2.0]]), [[0.6, 0.4]])


def test_moving_neurons_hands_on():
    def function(x):
        parts = [x[:, 2:], x[:, :2].flip(1)]
        return torch.cat(parts, dim=1).view(-1, 2, 2).permute(0, 2, 1).flatten(1)

    for target, neuron in enumerate((2, 1, 3, 0)):
        expected = torch.eye(4)[neuron : neuron + 1]
        assert_close(winners(function, torch.ones(1, 4), target), expected)


def trained(norm):
    """Any statistics and scales, negative ones too."""
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, -1, 1)
    nn.init.uniform_(norm.bias, -1, 1)
    return norm.eval()


def test_batch_norm_is_folded_into_the_layer_before():
    conv, norm = nn.Conv2d(2, 4, 3), trained(nn.BatchNorm2d(4))
    linear, last = nn.Linear(4, 3), trained(nn.BatchNorm1d(3))
    assert norm.weight.min() < 0 < norm.weight.max()
    tail = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    apart = nn.Sequential(nn.Identity(), conv, norm, *tail, linear, last).eval()
    folded = nn.Sequential(
        nn.Identity(), fuse_conv_bn_eval(conv.eval(), norm), *tail,
        fuse_linear_bn_eval(linear.eval(), last),
    )  # fmt: skip
    inputs = torch.rand(2, 2, 6, 6)
    for contrastive in (False, True):
        found = mwp(apart, apart[0], inputs, [0, 2], contrastive=contrastive)
        expected = mwp(folded, folded[0], inputs, [0, 2], contrastive=contrastive)
        assert found.abs().sum() > 0.5
        assert_close(found, expected)


def test_batch_norm_elsewhere_is_a_scale():
    norm = nn.BatchNorm1d(3, eps=0.0).eval()
    norm.weight.data = torch.tensor([2.0, -1.0, 1.0])
    norm.bias.data = torch.tensor([9.0, 9.0, 9.0])
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))

    def function(x, norm):
        return norm(F.relu(x)).sum(1, keepdim=True)

    # The sum sees 1 + 9, 2 + 9 and -1 + 9; the second scale excites nobody.
    inputs = torch.tensor([[1.0, 1.0, 2.0]])
    expected = torch.tensor([[10.0, 0.0, 11.0]]) / 29
    assert_close(winners(function, inputs, 0, norm), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_every_dimension_and_in_groups(dims):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    conv = kind(4, 4, 3, padding=1, groups=2)
    inputs = torch.rand(1, 4, *[4] * dims)
    found = winners(lambda x, f: f(x).flatten(1), inputs, 0, conv)
    matrix = torch.autograd.functional.jacobian(
        lambda x: conv(x).flatten(1)[0, 0], inputs
    )
    strength = inputs * matrix.clamp(min=0)
    assert_close(found, strength / strength.sum())
    assert found[:, 2:].sum() == 0


# --- what has no rule ---


class Secret(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x * 2

    @staticmethod
    def backward(_, gradient):
        return gradient * 2


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.softmax(1), "Softmax"),
        (lambda x: x.exp(), "Exp"),
        (lambda x: F.layer_norm(x, (3,)), "NativeLayerNorm"),
        (lambda x: x - 1, "Sub"),
        (lambda x: torch.add(x, x, alpha=-1), "Add"),
        (lambda x: x * x, "Mul"),
        (lambda x: x @ torch.ones(3, 3), "Mm"),
        (lambda x: x + x.exp(), "Exp"),
        (Secret.apply, "Secret"),
        (lambda x: F.batch_norm(x, None, None, training=True), "NativeBatchNorm"),
        (lambda x: F.interpolate(x[..., None, None], 2, mode="bicubic"), "Upsample"),
        (lambda x: F.linear(torch.ones(2, 3), x), "(Mm|Addmm)"),
    ],
)
def test_an_operation_without_rule_is_named(function, name):
    model = Then(function)
    inputs = torch.rand(2, 3)
    before = traces(model, inputs)
    with pytest.raises(
        ValueError, match=rf"operations that have a rule, .* got {name}"
    ):
        mwp(model, model.start, inputs, (0, 0, 0) if name == "Upsample" else 0)
    assert traces(model, inputs) == before


def test_dropout_that_drops_has_no_rule():
    with pytest.raises(ValueError, match="operations that have a rule"):
        winners(lambda x: F.dropout(x, 0.5), torch.rand(1, 3))


def test_hidden_from_gradients_is_an_error():
    for function in (lambda x: x.detach(), lambda x: torch.ones(1, 3)):
        with pytest.raises(ValueError, match="layer must lead to the output"):
            winners(function, torch.rand(1, 3))


def test_a_scripted_part_is_an_error():
    model = nn.Sequential(nn.Identity(), torch.jit.script(nn.Linear(3, 2)))
    with pytest.raises(TypeError, match="in plain Python on one device"):
        mwp(model, model[0], torch.rand(1, 3))


def test_a_model_in_training_mode_is_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"in evaluation mode .* training mode: 1"):
        mwp(model, model[0], torch.rand(1, 3))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_a_layer_of_several_tensors_is_an_error():
    pair = Pair()
    with pytest.raises(TypeError, match="layer must return one tensor, got Tensor, T"):
        mwp(lambda x: pair(x)[0], pair, torch.rand(1, 3))
    bilinear = nn.Bilinear(3, 3, 2)
    with pytest.raises(TypeError, match="layer must take one tensor, got Tensor, Ten"):
        mwp(lambda x: bilinear(x, x), bilinear, torch.rand(1, 3),
            attribute_to_layer_input=True)  # fmt: skip


def test_contrastive_needs_weights_at_the_top():
    layer = nn.Identity()
    for function in (layer, lambda x: layer(x) + torch.ones(1, 3)):
        with pytest.raises(ValueError, match="contrastive must be False unless"):
            mwp(function, layer, torch.rand(1, 3), contrastive=True)


def test_it_follows_a_model_on_one_device():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"device_ids must be None.* got \[0, 1\]"):
        ExcitationBackprop(model, model, [0, 1])


def test_activations_are_free_when_it_is_done():
    def function(x, conv, norm):
        x = F.relu(x)
        seen.append(weakref.ref(x))
        x += norm(conv(x))
        return conv(x).mean((2, 3))

    seen = []
    gc.disable()
    try:
        norm = nn.BatchNorm2d(3)
        winners(function, torch.rand(1, 3, 8, 8), 0, nn.Conv2d(3, 3, 1), norm)
        assert len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()


# --- whole networks ---

NETWORKS = {
    "vgg11": lambda m: m[0][10],
    "resnet18": lambda m: m.layer3,
    "resnet50": lambda m: m.layer3,
    "squeezenet1_1": lambda m: m.features[7],
    "densenet121": lambda m: m.features.denseblock3,
    "regnet_y_400mf": lambda m: m.trunk_output.block3,
}


def vgg():
    """Its convolutions, without its large linear layers, which take time to make."""
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"])
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(512, 5)]
    return nn.Sequential(features, *head)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision(name):
    model = vgg() if name == "vgg11" else torchvision.models.get_model(name)
    model.eval()
    inputs, seen = torch.randn(2, 3, 64, 64), []

    def forward(x):
        seen.append(model(x))
        return seen[-1]

    before = traces(model, inputs)
    method = ExcitationBackprop(forward, NETWORKS[name](model))
    for contrastive, total in ((False, 1.0), (True, 0.0)):
        found = method.attribute(inputs, [3, 1], contrastive=contrastive)
        sums = found.flatten(1).sum(1)
        assert_close(sums, [total, total], rtol=0, atol=1e-4)
        assert found.abs().sum() > 0.01
    assert traces(model, inputs) == before
    with torch.no_grad():
        expected = model(inputs)
    torch.testing.assert_close(seen[0].detach(), expected, rtol=1e-4, atol=1e-5)


def test_efficientnet_lite_probabilities_lie_on_the_object(data_root):
    image = data_root / "imagenet_mini" / "images" / "n01518878_ostrich.JPEG"
    from PIL import Image

    model, preprocess, _ = load_demo()
    inputs = preprocess(Image.open(image).convert("RGB"))[1][None]
    before = traces(model, inputs)
    found = mwp(model, model.blocks[4], inputs, 9)
    assert found.shape == (1, 112, 14, 14)
    assert found.min() >= 0
    assert 0.1 < found.sum() <= 1
    # The ostrich stands in the middle, from the first to the second third.
    places = found.sum(1)[0]
    assert places[:, 5:9].sum() > 0.75 * places.sum()
    assert mwp(model, model.blocks[6], inputs, 9).sum() == pytest.approx(1, abs=1e-5)
    assert traces(model, inputs) == before
