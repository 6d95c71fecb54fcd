"""`ChannelExtremalPerturbation` on models whose needed channels are known by hand."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn

from captum_extremal import (
    ChannelDescent,
    ChannelExtremalPerturbation,
    ChannelResult,
    ChannelSolver,
    ExtremalPerturbation,
    LevelSetSolver,
    SearchInterrupted,
    Solution,
    contrastive_reward,
    presets,
)
from tiny_models import ConvNet, Pair, Spare, Weighted, compiled, traces, varied

WEIGHTS = [[5.0, 1.0, -2.0, 4.0, 0.0, 2.0], [0.0, 3.0, 7.0, -1.0, 6.0, 0.5]]
SHORT = ChannelSolver(iterations=8, rounds=2)


def kept(masks):
    """The channels of each mask, (N, A) lists."""
    return [[set(row.nonzero().flatten().tolist()) for row in m] for m in masks]


def ones(images=1, channels=6, size=(3, 2)):
    return torch.ones(images, channels, *size)


def method_of(model, layer=None, **options):
    layer = model.channels if layer is None else layer
    return ChannelExtremalPerturbation(model, layer, **options)


# --- which channels ---


def test_the_channels_of_a_weighted_sum():
    result = method_of(Weighted(WEIGHTS)).optimize(ones(), 0, (1, 2, 4, 6))
    assert kept(result.masks) == [[{0}, {0, 3}, {0, 1, 3, 5}, set(range(6))]]
    assert result.counts == (1, 2, 4, 6)
    torch.testing.assert_close(result.scores, torch.tensor([[5.0, 9.0, 12.0, 10.0]]))
    expected = torch.tensor([[5.0, 1.0, -2.0, 0.0]])
    torch.testing.assert_close(result.complement_scores, expected)
    assert result.input_score.tolist() == [10.0]
    assert result.perturbed_score.tolist() == [0.0]
    assert result.smallest_sufficient_count().tolist() == [4.0]


def test_each_image_has_its_own_target_and_its_own_activation():
    inputs = ones(3)
    inputs[2, 0] = 0.1  # its first channel is worth 0.5 only
    result = method_of(Weighted(WEIGHTS)).optimize(inputs, [0, 1, 0], (1, 2))
    assert kept(result.masks) == [[{0}, {0, 3}], [{2}, {2, 4}], [{3}, {3, 5}]]


def test_a_pair_that_is_worth_something_only_together():
    result = method_of(Pair()).optimize(ones(), None, (1, 2, 3))
    assert kept(result.masks) == [[{2}, {0, 1}, {0, 1, 2}]]


def test_the_games_differ():
    found = {
        game: kept(method_of(Spare()).optimize(ones(), None, 2, game=game).masks)[0][0]
        for game in ("preservation", "deletion", "hybrid")
    }
    assert found["preservation"] == {0, 2}
    assert found["deletion"] == {0, 1}
    # Both ways {0, 2} has 1.6 - 0.9, {0, 1} has 1.0 - 0.6.
    assert found["hybrid"] == {0, 2}
    hybrid = method_of(Spare()).optimize(ones(), None, 1, game="hybrid")
    assert kept(hybrid.masks) == [[{2}]]  # 0.6 - 1.0 against 1.0 - 1.5


def test_int_counts_channels_and_float_is_a_fraction():
    method = method_of(Weighted(WEIGHTS))
    counts = [
        method.optimize(ones(), 0, area).counts
        for area in (1, 0.5, 1.0, 0.01, 3, torch.tensor(3), torch.tensor(0.5))
    ]
    assert counts == [(1,), (3,), (6,), (1,), (3,), (3,), (3,)]
    assert method.optimize(ones(), 0, (1, 1.0)).counts == (1, 6)


@pytest.mark.parametrize("channels", [7, 49, 112, 528])
def test_every_count_is_exact(channels):
    torch.manual_seed(0)
    model = Weighted(torch.randn(2, channels).tolist())
    solver = ChannelSolver(iterations=1, rounds=0)
    areas = tuple(range(1, channels + 1, max(1, channels // 40)))
    result = method_of(model, solver=solver).optimize(ones(1, channels), 0, areas)
    assert result.counts == areas
    assert ((result.masks == 0) | (result.masks == 1)).all()


def test_the_attribution_is_the_mean_of_the_masks_all_over_the_activation():
    method = method_of(Weighted(WEIGHTS))
    found = method.attribute(ones(2), 0, (1, 2, 4))
    assert found.shape == (2, 6, 3, 2)
    assert found.is_contiguous()
    expected = torch.tensor([3, 1, 0, 2, 0, 1]) / 3
    torch.testing.assert_close(found, expected.view(1, 6, 1, 1).expand(2, 6, 3, 2))


def test_baselines_say_what_is_left_instead_of_a_channel():
    method = method_of(Weighted(WEIGHTS))
    # What is left of channel 0 is as good as the channel itself.
    left = torch.tensor([1.0, 0, 0, 0, 0, 0]).view(1, 6, 1, 1)
    result = method.optimize(ones(), 0, 1, layer_baselines=left)
    assert kept(result.masks) == [[{3}]]
    assert result.perturbed_score.tolist() == [5.0]
    # All left at 2: keeping the channel that counts against is best.
    assert kept(method.optimize(ones(), 0, 1, layer_baselines=2.0).masks) == [[{2}]]


@pytest.mark.parametrize("dim", [2, -1])
def test_the_channels_of_tokens(dim):
    weights = torch.tensor(WEIGHTS)
    layer = nn.Identity()

    def model(x):
        return layer(x).mean(dim=1) @ weights.T

    method = ChannelExtremalPerturbation(model, layer)
    tokens = torch.ones(2, 5, 6)
    result = method.optimize(tokens, [0, 1], 2, channel_dim=dim)
    assert kept(result.masks) == [[{0, 3}], [{2, 4}]]
    assert result.saliency(result.masks[:, 0]).shape == (2, 5)
    found = method.attribute(tokens, [0, 1], 2, channel_dim=dim)
    assert found.shape == tokens.shape
    assert found[1, 3].tolist() == [0, 0, 1, 0, 1, 0]
    # The channels of dimension 1 are the tokens, which are all alike.
    assert method.attribute(tokens, 0, 2)[0].sum(dim=0).tolist() == [2.0] * 6


def test_vectors_have_channels_and_nothing_else():
    layer = nn.Identity()
    method = ChannelExtremalPerturbation(
        lambda x: layer(x) @ torch.tensor(WEIGHTS).T, layer
    )
    assert method.attribute(torch.ones(1, 6), 0, 2).tolist() == [[1, 0, 0, 1, 0, 0]]


def test_the_input_of_a_layer():
    class Doubling(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], dim=1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.channels = Doubling()

        def forward(self, x):
            return self.channels(x).flatten(2).mean(2)[:, 2:8].cumsum(1)[:, -1]

    method = method_of(Model())
    inputs = torch.tensor([3.0, 1, 4, 2, 5, 6]).view(1, 6, 1, 1)
    at_input = method.optimize(inputs, None, 2, attribute_to_layer_input=True)
    assert at_input.masks.shape == (1, 1, 6)
    assert kept(at_input.masks) == [[{4, 5}]]
    assert at_input.input_score.tolist() == [21.0]
    at_output = method.optimize(inputs, None, 2)
    assert at_output.masks.shape == (1, 1, 12)
    assert kept(at_output.masks) == [[{4, 5}]]
    assert method.attribute(inputs, None, 2, None, True).shape == (1, 6, 1, 1)


class Split(nn.Module):
    """Two tensors of channels: the sum of the first and twice that of the second."""

    def __init__(self, sizes=(3, 3), kind=None):
        super().__init__()

        class Layer(nn.Module):
            def forward(self, x):
                parts = x.split(sizes, dim=1)
                return tuple(parts) if kind is None else kind(*parts)

        self.channels, self.kind = Layer(), kind

    def forward(self, x):
        parts = self.channels(x)
        if self.kind is not None:
            assert isinstance(parts, self.kind)
        return parts[0].sum((1, 2, 3)) + 2 * parts[1].sum((1, 2, 3))


Two = namedtuple("Two", ["a", "b"])


@pytest.mark.parametrize("kind", [None, Two])
def test_a_layer_with_two_tensors_has_two_masks(kind):
    values = torch.tensor([1.0, 3, 2, 2, 1, 5]).view(1, 6, 1, 1)
    method = method_of(Split(kind=kind))
    result = method.optimize(values, None, (1, 2))
    assert [kept(masks) for masks in result.masks] == [
        [[{1}, {1, 2}]],
        [[{2}, {0, 2}]],
    ]
    assert result.counts == (2, 4)
    assert result.scores.tolist() == [[13.0, 19.0]]
    found = method.attribute(values, None, (1, 2))
    assert isinstance(found, tuple)
    assert found[1].flatten().tolist() == [0.5, 0, 1]


def test_tensors_of_unlike_size_take_fractions():
    values = torch.tensor([1.0, 3, 2, 2, 1, 5]).view(1, 6, 1, 1)
    method = method_of(Split(sizes=(2, 4)))
    result = method.optimize(values, None, 0.5)
    assert [kept(masks) for masks in result.masks] == [[[{1}]], [[{0, 3}]]]
    with pytest.raises(ValueError, match="must be a fraction for tensors that differ"):
        method.optimize(values, None, 1)


def test_inputs_may_be_whole_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(1), nn.Linear(12, 2))
    method = ChannelExtremalPerturbation(model, model[0])
    words = torch.tensor([[1, 2, 3], [4, 5, 8]])
    result = method.optimize(words, 1, (1, 4), channel_dim=2)
    assert result.masks.shape == (2, 2, 4)
    torch.testing.assert_close(result.scores[:, 1], model(words)[:, 1])


def test_the_reward_is_what_is_maximised():
    plain = method_of(Weighted(WEIGHTS)).optimize(ones(), 0, 1)
    model = Weighted([WEIGHTS[0], [5.0, 0, 0, 0, 0, 0]])
    contrast = method_of(model, reward=contrastive_reward).optimize(ones(), 0, 1)
    assert (kept(plain.masks), kept(contrast.masks)) == ([[{0}]], [[{3}]])
    assert contrast.settings["reward"] == "contrastive_reward"


def test_the_paper_preset():
    assert presets.paper_channels()["solver"] == ChannelDescent(
        iterations=300, learning_rate=0.01, area_weight=1500.0, ramp=0.5
    )
    assert len(presets.PAPER_CHANNELS) == 21
    assert presets.PAPER_CHANNELS[:4] == (1, 5, 10, 20)
    assert presets.PAPER_CHANNELS[-3:] == (400, 450, 528)
    method = method_of(Weighted(WEIGHTS), **presets.paper_channels())
    result = method.optimize(ones(), 0, (1, 2, 4))
    assert kept(result.masks) == [[{0}, {0, 3}, {0, 1, 3, 5}]]


def test_no_mask_is_worse_than_activation_times_gradient():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.Tanh(), nn.Conv2d(12, 5, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(5 * 4, 3),
    )  # fmt: skip
    inputs = torch.randn(4, 1, 6, 6)
    method = ChannelExtremalPerturbation(
        model, model[1], solver=ChannelSolver(iterations=1, rounds=0)
    )
    areas = (1, 3, 6)
    found = method.optimize(inputs, 2, areas)
    hidden = model[:2](inputs).detach().requires_grad_()
    model[2:](hidden)[:, 2].sum().backward()
    order = (hidden * hidden.grad).sum((2, 3)).argsort(dim=1, descending=True)
    masks = torch.zeros(4, 3, 12)
    for place, area in enumerate(areas):
        masks[:, place].scatter_(1, order[:, :area], 1.0)
    assert (found.scores >= method.evaluate(inputs, masks, 2) - 1e-5).all()


# --- evaluate ---


def test_evaluate_scores_masks_of_any_origin():
    method = method_of(Weighted(WEIGHTS))
    masks = torch.tensor([[[1.0, 0, 0, 0.5, 0, 0], [0, 0, 1, 0, 0, 0]]])
    assert method.evaluate(ones(), masks, 0).tolist() == [[7.0, -2.0]]
    deletion = method.evaluate(ones(), masks, 0, game="deletion")
    assert deletion.tolist() == [[-3.0, -12.0]]


def test_evaluate_agrees_with_optimize():
    model = ConvNet().eval()
    method = ChannelExtremalPerturbation(model, model.norm)
    result = method.optimize(varied((2, 1, 8, 8)), 1, (1, 2))
    again = method.evaluate(varied((2, 1, 8, 8)), result.masks, 1)
    torch.testing.assert_close(again, result.scores)


@pytest.mark.parametrize(
    ("masks", "error", "text"),
    [
        (torch.ones(1, 2, 5), ValueError, r"must be of shape \(1, A, 6\), got"),
        (torch.ones(1, 6), ValueError, r"must be of shape \(1, A, 6\), got"),
        (2 * torch.ones(1, 1, 6), ValueError, "must lie in"),
        (torch.full((1, 1, 6), torch.nan), ValueError, "must lie in"),
        (torch.ones(1, 1, 6, dtype=torch.long), TypeError, "floating point"),
        ((torch.ones(1, 1, 6),) * 2, ValueError, "as many as the layer's tensors, 1"),
    ],
)
def test_evaluate_refuses_masks_that_do_not_fit(masks, error, text):
    with pytest.raises(error, match=f"masks must .*{text}|{text}"):
        method_of(Weighted(WEIGHTS)).evaluate(ones(), masks, 0)


# --- a call ---


def test_tuples_of_inputs():
    layer = nn.Identity()
    method = ChannelExtremalPerturbation(
        lambda x, y: (layer(x) @ torch.tensor(WEIGHTS).T) * y, layer, solver=SHORT
    )
    pair = (torch.ones(2, 6), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    found = method.attribute(pair, 0, 1)
    assert isinstance(found, torch.Tensor)  # one tensor of the layer, as in Captum
    assert found.tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


class Failing(nn.Module):
    """Fails at forward number ``at``, counted from 0."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls > self.at:
            raise ZeroDivisionError("the model is out of order")
        return x


@pytest.mark.parametrize("at", [0, 1, 3, 9, 20])
def test_everything_stays_as_it_was_when_the_model_fails(at):
    tail = Failing(at)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), tail, nn.Flatten(), nn.Linear(96, 2)
    )
    method = ChannelExtremalPerturbation(model, model[1])
    inputs = varied((1, 1, 6, 6))
    before = traces(model, inputs)
    with pytest.raises(ZeroDivisionError, match="out of order"):
        method.attribute(inputs, 0, (1, 2))
    # A failure in the trial without the front (the second) is met again with it.
    assert tail.calls == at + 1 + (at == 1)
    tail.calls = 0
    assert traces(model, inputs) == before


def test_ctrl_c_keeps_the_masks():
    class Interrupted:
        def solve(self, problem, seed=0, on_step=None):
            assert seed == 5
            masks = torch.zeros(problem.num_cells, 1, *problem.sizes[0])
            masks[:, :, :2] = 1
            return Solution((masks,), ended="interrupt")

    method = method_of(Weighted(WEIGHTS), solver=Interrupted())
    with pytest.raises(SearchInterrupted) as caught:
        method.attribute(ones(), 0, 2, seed=5)
    assert isinstance(caught.value.result, ChannelResult)
    assert kept(caught.value.result.masks) == [[{0, 1}]]


# --- errors ---


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"areas": 0}, ValueError, "area must be at least 1 channel, got 0"),
        ({"areas": 7}, ValueError, "at most the layer's 6 channels, got 7"),
        ({"channel_dim": 0}, ValueError, r"channel_dim must lie in \[1, 3\]"),
        ({"channel_dim": 4}, ValueError, r"channel_dim must lie in \[1, 3\]"),
        ({"channel_dim": -4}, ValueError, r"channel_dim must lie in \[1, 3\]"),
        ({"channel_dim": 1.0}, TypeError, "channel_dim must be an int"),
        ({"attribute_to_layer_input": 1}, TypeError, "must be True or False, got 1"),
        ({"layer_baselines": "0"}, TypeError, "layer_baselines must be numbers"),
        (
            {"layer_baselines": torch.zeros(5, 1, 1)},
            ValueError,
            r"must broadcast to the activation, \(1, 6, 3, 2\), got \(5, 1, 1\)",
        ),
        ({"layer_baselines": (0.0, 0.0)}, ValueError, "as many as the layer's tensors"),
        ({"layer_baselines": float("nan")}, ValueError, "layer_baselines must be fin"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(options, error, text):
    with pytest.raises(error, match=text):
        method_of(Weighted(WEIGHTS), solver=SHORT).attribute(ones(), 0, **options)


def test_a_layer_without_rows_floats_or_tensors():
    inputs = torch.ones(2, 3, 4)

    class Layer(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change = change

        def forward(self, x):
            return self.change(x)

    for change, error, text in (
        (lambda x: x.transpose(0, 1), ValueError, "one row for each of the 2 examples"),
        (lambda x: x.long(), TypeError, "what layer gives must be a floating point"),
        (lambda x: [x], TypeError, "layer must return a tensor or a tuple of tensors"),
        (lambda x: (x, None), TypeError, "got Tensor, NoneType"),
        (lambda x: x / 0, ValueError, "layer must give finite values"),
    ):
        layer = Layer(change)
        method = ChannelExtremalPerturbation(
            lambda x, layer=layer: (layer(x), x.sum((1, 2)))[1], layer
        )
        with pytest.raises(error, match=text):
            method.attribute(inputs, None, 1)


def test_scores_that_are_not_finite():
    layer = nn.Identity()
    method = ChannelExtremalPerturbation(lambda x: layer(x).sum(1).log(), layer)
    with pytest.raises(ValueError, match="must give finite scores, got"):
        method.attribute(torch.ones(1, 6), None, 1)


# --- the networks of the paper and others, with weights at random ---


def check_network(model, layer, inputs, channels, **options):
    solver = ChannelSolver(iterations=2, rounds=1)
    method = ChannelExtremalPerturbation(model.eval(), layer, solver=solver)
    target = model(inputs).argmax(1)
    result = method.optimize(inputs, target, (1, 0.5, channels), **options)
    assert result.counts == (1, channels // 2, channels)
    torch.testing.assert_close(
        result.scores[:, 2], result.input_score, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        result.input_score,
        model(inputs).gather(1, target[:, None])[:, 0],
        rtol=1e-3,
        atol=1e-4,
    )
    again = method.evaluate(inputs, result.masks, target, **options)
    torch.testing.assert_close(again, result.scores, rtol=1e-3, atol=1e-4)
    return result


def test_resnet50():
    from torchvision.models import resnet50

    model = resnet50(num_classes=5)
    found = check_network(model, model.layer3, torch.randn(1, 3, 32, 32), 1024)
    assert found.saliency().shape == (1, 2, 2)


def test_googlenet():
    from torchvision.models import googlenet

    model = googlenet(num_classes=5, aux_logits=False, init_weights=False)
    check_network(model, model.inception4d, torch.randn(1, 3, 64, 64), 528)


def test_vision_transformer():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(16, 4, 3, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    layer = model.encoder.layers[1]
    images = torch.randn(2, 3, 16, 16)
    found = check_network(model, layer, images, 16, channel_dim=2)
    assert found.activations.shape == (2, 17, 16)
    check_network(
        model, layer.mlp, images, 16, channel_dim=-1, attribute_to_layer_input=True
    )


def test_efficientnet_lite():
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    check_network(model, model.blocks[4], torch.randn(1, 3, 64, 64), 112)
    last = model.blocks[3][-1]
    check_network(model, last, torch.randn(1, 3, 64, 64), 80)


def test_scripted_parts_and_data_parallel():
    model = ConvNet().eval()
    expected = ChannelExtremalPerturbation(model, model.norm).attribute(
        varied((2, 1, 8, 8)), 1, 2
    )
    parallel = nn.DataParallel(model)  # without a GPU: the model itself
    if not torch.cuda.is_available():
        found = ChannelExtremalPerturbation(parallel, model.norm)
        assert torch.equal(found.attribute(varied((2, 1, 8, 8)), 1, 2), expected)
    scripted = torch.jit.script(model)
    with pytest.raises(TypeError, match="layer must not be a scripted or traced mod"):
        ChannelExtremalPerturbation(scripted, scripted.norm)
    # Other parts may be scripted.
    mixed = nn.Sequential(torch.jit.script(nn.Conv2d(1, 4, 3)), nn.Tanh(), nn.Flatten())
    method = ChannelExtremalPerturbation(mixed, mixed[1])
    assert method.attribute(varied((2, 1, 8, 8)), 1, 2).shape == (2, 4, 6, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_data_parallel_scatters():
    torch.manual_seed(0)
    model = ConvNet().eval().cuda()
    inputs = varied((3, 1, 8, 8)).cuda()
    expected = ChannelExtremalPerturbation(model, model.norm).attribute(inputs, 1, 2)
    ids = list(range(torch.cuda.device_count()))
    parallel = nn.DataParallel(model, device_ids=ids)
    for method in (
        ChannelExtremalPerturbation(parallel, model.norm),
        ChannelExtremalPerturbation(lambda x: parallel(x), model.norm, device_ids=ids),
    ):
        assert torch.equal(method.attribute(inputs, 1, 2), expected)


def test_solvers_of_pixels_may_be_used():
    # Masks of a smooth field over the channels in their order: 4 and 5 are neighbours.
    model = Weighted([[0.0, 0, 0, 0, 3, 2, 0, 0, 2, 0], [1.0] * 10])
    method = method_of(model, solver=LevelSetSolver(iterations=20, jitter=0.0))
    result = method.optimize(ones(1, 10), 0, (2, 5))
    assert result.counts == (2, 5)
    assert {4, 5} == set((result.masks[0, 0] >= 0.5).nonzero().flatten().tolist())


def test_the_result_names_what_was_asked():
    result = method_of(Weighted(WEIGHTS), solver=SHORT).optimize(
        ones(), 0, (1, 0.5), game="hybrid", seed=7
    )
    assert result.areas == (1, 0.5)
    assert result.settings["game"] == "hybrid"
    assert result.settings["seed"] == 7
    assert result.settings["layer"] == "Identity"
    assert result.settings["solver"] == repr(SHORT)
    assert result.history["reward"].shape == (1, 2, 8)


def test_both_methods_agree_where_pixels_are_channels():
    # A row of pixels: a channel each, and a mask of hard edges.
    weights = torch.tensor([3.0, 1.0, 4.0, 2.0])
    layer = nn.Identity()

    def model(x):
        return (layer(x) * weights).sum(dim=(1, 2) if x.dim() == 3 else 1)

    channels = ChannelExtremalPerturbation(model, layer)
    by_channel = channels.optimize(torch.ones(1, 4), None, 2)
    pixels = ExtremalPerturbation(model, "fade")
    score = pixels.evaluate(torch.ones(1, 1, 4), by_channel.masks[:, :, None])
    assert score.tolist() == by_channel.scores.tolist() == [[7.0]]


# --- layers whose hooks are not called, models of odd kinds ---


def sequence():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)
    ).eval()


@pytest.mark.parametrize("before", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("way", ["module", "in place", "function", "part"])
def test_the_layers_of_a_compiled_model_that_has_run(before, way):
    torch._dynamo.reset()
    model, inputs = sequence(), varied((2, 1, 6, 6))
    expected = method_of(model, model[1], solver=SHORT).optimize(inputs, 0, [1, 2])
    fast = compiled(model, way)
    with before():
        fast(inputs)
    method = method_of(fast, model[1], solver=SHORT)
    found = method.optimize(inputs, 0, [1, 2])
    assert torch.equal(found.masks, expected.masks)
    torch.testing.assert_close(found.scores, expected.scores)


def test_a_layer_of_a_copy_is_named():
    model = sequence()
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"none of forward_func.modules\(\)"):
        method_of(model, other[1]).attribute(varied((1, 1, 6, 6)), 0, 1)


def test_a_layer_whose_forward_is_called_directly():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer.forward(x)

    model = Direct()
    with pytest.raises(ValueError, match=r"layer must be called .*layer.forward\(x\)"):
        method_of(model, model.layer).attribute(torch.ones(1, 4), 0, 1)


@pytest.mark.parametrize("images", [1, 2])
def test_a_model_for_batches_of_one_is_named(images):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = sequence()

        def forward(self, x):
            return self.body(x.reshape(1, 1, 6, 6))

    model, inputs = One(), varied((images, 1, 6, 6))
    method = method_of(model, model.body[1], solver=SHORT)
    text = "takes batches of one alone: perturbations_per_eval=1"
    with pytest.raises(RuntimeError, match=text):
        method.optimize(inputs, 0, [1, 2])
    found = method.optimize(inputs, 0, [1, 2], perturbations_per_eval=1, game="hybrid")
    expected = method_of(model.body, model.body[1], solver=SHORT).optimize(
        inputs, 0, [1, 2], game="hybrid"
    )
    assert torch.equal(found.masks, expected.masks)


def test_a_layer_that_keeps_the_first_row_only():
    layer = nn.Identity()
    method = ChannelExtremalPerturbation(lambda x: layer(x[:1]).sum((1, 2, 3)), layer)
    with pytest.raises(ValueError, match="perturbations_per_eval=1"):
        method.attribute(ones(2), None, 1)


# --- tokens ---


class Tokens(nn.Module):
    """(N, 17, 8), of which feature 5 decides."""

    def __init__(self, layer):
        super().__init__()
        self.block = layer

    def forward(self, x):
        return self.block(x)[..., 5].flatten(1).mean(dim=1)


@pytest.mark.parametrize("layer", [nn.Identity(), nn.LayerNorm(8)])
def test_tokens_are_hinted_at_once(layer):
    torch.manual_seed(0)
    model, inputs = Tokens(layer), torch.rand(1, 17, 8) + 0.5
    method = method_of(model, model.block)
    with pytest.warns(UserWarning, match=r"channel_dim=2 or -1 takes the 8") as caught:
        method.optimize(inputs, areas=[1])
    assert caught[0].filename == __file__
    method.optimize(inputs, areas=[1])
    found = method_of(model, model.block).optimize(inputs, areas=[1], channel_dim=-1)
    assert kept(found.masks) == [[{5}]]


def test_channels_last_are_hinted_at():
    model, inputs = Tokens(nn.LayerNorm(8)), torch.rand(1, 3, 4, 8)
    with pytest.warns(UserWarning, match="channel_dim=3 or -1 takes the 8 features"):
        method_of(model, model.block).optimize(inputs, areas=[1])


def test_signals_and_whoever_names_a_dimension_get_no_hint():
    signal = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten())
    method = ChannelExtremalPerturbation(lambda x: signal(x).sum(1), signal[1])
    method.optimize(varied((1, 1, 19)), areas=[1])
    model = Tokens(nn.Identity())
    method_of(model, model.block).optimize(
        torch.rand(1, 17, 8), areas=[1], channel_dim=-2
    )


# --- precision ---


def test_small_differences_of_large_scores_decide():
    layer = nn.Identity()

    def model(x):
        # What the gradient at all channels favours, 4 and 3, is worth less than 0.
        a = layer(x)
        return 1e8 + 1e-3 * (6 * a[:, 0] * (1 - a[:, 1]) + a[:, 3] + 2 * a[:, 4])

    method = ChannelExtremalPerturbation(model, layer, solver=ChannelSolver(1))
    inputs = torch.ones(1, 6, dtype=torch.float64)
    for count, channels, worth in ((1, {0}, 6e-3), (2, {0, 4}, 8e-3)):
        result = method.optimize(inputs, None, [count])
        assert kept(result.masks) == [[channels]]
        expected = torch.tensor([[1e8 + worth]], dtype=torch.float64)
        torch.testing.assert_close(result.scores, expected, rtol=1e-15, atol=1e-7)
        assert result.smallest_sufficient_count(1e8 + worth).tolist() == [count]
