"""`_features`: which dimension of an activation its channels are."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlock
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from captum_extremal._base.features import channel_dim_of, hint_at_features


def dims_of(model, inputs):
    """The shape and the dimension found, of each layer's output, by name."""
    found = {}

    def note(name, module, output):
        if isinstance(output, torch.Tensor) and output.dim() > 2:
            shape = tuple(output.shape)
            found[name] = shape, channel_dim_of(shape, module, model)

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: note(name, m, out))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def test_a_vision_transformer():
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24,
        mlp_dim=40, num_classes=3,
    ).eval()  # fmt: skip
    found = dims_of(model, torch.rand(1, 3, 32, 32))
    assert found.pop("conv_proj") == ((1, 24, 4, 4), 1)
    assert found["encoder.layers.encoder_layer_1"] == ((1, 17, 24), 2)
    assert found["encoder.layers.encoder_layer_0.mlp.1"] == ((1, 17, 40), 2)
    assert {dim for _, dim in found.values()} == {2}


def test_a_swin_transformer_has_its_channels_last():
    model = SwinTransformer(
        [4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4]
    ).eval()
    found = dims_of(model, torch.rand(1, 3, 64, 64))
    assert found["features.0.0"] == ((1, 24, 16, 16), 1)
    assert found["features.1"] == ((1, 16, 16, 24), 3)
    assert found["features.1.0.mlp.1"] == ((1, 16, 16, 96), 3)
    assert found["features.3"] == ((1, 8, 8, 48), 3)


def test_a_convnext_block_has_both():
    found = dims_of(CNBlock(12, 1.0, 0.0).eval(), torch.rand(1, 12, 6, 6))
    assert found["block.0"] == ((1, 12, 6, 6), 1)
    assert found["block.3"] == ((1, 6, 6, 48), 3)
    assert found[""] == ((1, 12, 6, 6), 1)


@pytest.mark.parametrize("length", [8, 16, 64])
def test_signals_have_their_channels_first(length):
    model = nn.Sequential(
        nn.Conv1d(2, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Conv1d(16, 8, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2),
    ).eval()  # fmt: skip
    found = dims_of(model, torch.rand(1, 2, length))
    assert {dim for _, dim in found.values()} == {1}
    for wrapped in (
        lambda x: model(x),
        lambda x, model=model: model(x),
        functools.partial(lambda x, y: model(x), y=1),
    ):
        assert channel_dim_of((1, 16, length), model[2], wrapped) == 1


def test_of_equal_sizes_the_layers_tell():
    linear, conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 1)
    assert channel_dim_of((1, 8, 8), linear, linear) == 2
    assert channel_dim_of((1, 8, 8), conv, conv) == 1
    relu = nn.ReLU()
    assert channel_dim_of((1, 8, 8), relu, nn.Sequential(linear, relu)) == 2
    assert channel_dim_of((1, 8, 8), relu, nn.Sequential(conv, relu)) == 1
    both = nn.Sequential(linear, conv, relu)
    assert channel_dim_of((1, 8, 8), relu, both) is None


def test_the_input_of_a_layer_has_widths_of_its_own():
    block = nn.Sequential(nn.Linear(17, 8), nn.Linear(8, 5))
    assert channel_dim_of((1, 4, 17), block, block, at_input=True) == 2
    assert channel_dim_of((1, 17, 4), nn.Conv1d(17, 3, 1), block, at_input=True) == 1


@pytest.mark.parametrize(
    ("shape", "layer", "text"),
    [
        ((2, 17, 8), nn.Identity(), r"\(N, 17, 8\) .* may be \(N, tokens, features\)"),
        ((2, 17, 8), nn.LayerNorm(8), r"seems to be .* channel_dim=2 or -1 takes the"),
        ((2, 7, 7, 8), nn.Linear(3, 8), r"channel_dim=3 or -1 .* channel_dim=-3 means"),
        ((2, 8, 7, 7), nn.Linear(3, 8), None),
        ((2, 7, 7, 9), nn.Identity(), None),
        ((2, 17), nn.Linear(3, 17), None),
        ((2, 8, 17), nn.Conv1d(2, 8, 1), None),
    ],
)
def test_the_hint(shape, layer, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hinted = hint_at_features(shape, layer, layer)
    assert hinted == bool(caught) == (text is not None)
    if text:
        with pytest.warns(UserWarning, match=text):
            hint_at_features(shape, layer, layer)
