"""`_model`: what a model is asked, and that it is left as it was found."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from captum_extremal._model import (
    as_found,
    layer_output,
    made_in_inference_mode,
    training_layers,
)
from tiny_models import Blocks, ConvNet, NoModel, constant, traces, varied

CPU = torch.device("cpu")


# --- training_layers ---


def test_a_model_in_evaluation_has_no_training_layers():
    assert training_layers(ConvNet().eval()) == []


def test_training_layers_are_named():
    assert training_layers(ConvNet().train()) == ["norm", "drop"]


def test_only_layers_that_train_are_named():
    model = ConvNet().train()
    model.norm.eval()
    assert training_layers(model) == ["drop"]
    model.eval()
    model.norm.train()
    assert training_layers(model) == ["norm"]


def test_layers_deep_inside_have_dotted_names():
    model = nn.Sequential(Blocks(), nn.Sequential(nn.ReLU(), ConvNet())).train()
    assert training_layers(model) == ["1.1.norm", "1.1.drop"]


def test_a_layer_alone_is_named_by_its_type():
    assert training_layers(nn.Dropout()) == ["Dropout"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2),
        nn.Dropout(), nn.Dropout1d(), nn.Dropout2d(), nn.Dropout3d(),
        nn.AlphaDropout(), nn.FeatureAlphaDropout(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_every_kind_of_batch_norm_and_dropout_is_known(layer):
    assert training_layers(layer.train()) == [type(layer).__name__]
    assert training_layers(layer.eval()) == []


@pytest.mark.parametrize(
    "model",
    [Blocks().train(), nn.LayerNorm(3), lambda x: x],
    ids=["no such layers", "LayerNorm", "function"],
)
def test_others_have_none(model):
    assert training_layers(model) == []


def test_a_method_of_a_model_is_the_model():
    model = ConvNet().train()
    assert training_layers(model.forward) == ["norm", "drop"]
    with as_found(model.forward, CPU):
        model.norm.running_mean.fill_(7)
    assert (model.norm.running_mean == 0).all()


def test_a_frozen_scripted_model_has_no_mode():
    model = torch.jit.freeze(torch.jit.script(ConvNet().eval()))
    assert training_layers(model) == []
    with as_found(model, CPU):
        model(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("training", [False, True])
def test_layers_of_a_scripted_model_are_known(training):
    model = torch.jit.script(ConvNet().train(training))
    assert training_layers(model) == (["norm", "drop"] if training else [])


# --- made_in_inference_mode ---


def test_a_model_made_in_inference_mode_is_known():
    assert not made_in_inference_mode(Blocks())
    with torch.inference_mode():
        inside = Blocks()
        assert not made_in_inference_mode(nn.ReLU())
    assert made_in_inference_mode(inside)
    assert made_in_inference_mode(nn.Sequential(Blocks(), inside))


def test_a_model_that_was_only_run_in_inference_mode_is_not():
    model = ConvNet().train()
    with torch.inference_mode():
        model(varied((2, 1, 10, 10)))
        assert not made_in_inference_mode(model)


def test_a_model_made_under_no_grad_is_not():
    with torch.no_grad():
        assert not made_in_inference_mode(Blocks())


def test_a_function_is_not_made_in_inference_mode():
    assert not made_in_inference_mode(lambda x: x)


# --- as_found ---


def test_generators_are_put_back():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with as_found(Blocks(), CPU):
        torch.rand(100)
        torch.manual_seed(99)
    assert torch.equal(torch.rand(4), expected)


def test_the_generators_of_the_device_are_put_back(device):
    torch.manual_seed(3)
    expected = torch.rand(4, device=device)
    torch.manual_seed(3)
    with as_found(Blocks(), device):
        torch.rand(100, device=device)
    assert torch.equal(torch.rand(4, device=device), expected)


def test_statistics_of_a_training_model_are_put_back(device):
    model = ConvNet().to(device).train()
    before = traces(model)
    pointers = [buffer.data_ptr() for buffer in model.buffers()]
    with as_found(model, device):
        model(varied((2, 1, 10, 10)).to(device))
        assert model.norm.num_batches_tracked == 1
    assert traces(model) == before
    assert [buffer.data_ptr() for buffer in model.buffers()] == pointers


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_all_is_put_back_on_an_exception(error):
    model = ConvNet().train()
    before = traces(model)

    def fail():
        with as_found(model, CPU):
            model(varied((2, 1, 10, 10)))
            raise error

    with pytest.raises(error):
        fail()
    assert traces(model) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_all_is_put_back_in_every_gradient_mode(mode):
    model = ConvNet().train()
    before = traces(model)
    with mode(), as_found(model, CPU):
        model(varied((2, 1, 10, 10)))
    assert traces(model) == before


def test_buffers_that_need_gradients_are_put_back():
    model = ConvNet().train()
    model.norm.running_mean.requires_grad_()
    before = traces(model)
    with as_found(model, CPU), torch.no_grad():
        model.norm.running_mean.add_(1)
    assert traces(model) == before


def test_a_model_in_evaluation_that_counts_is_put_back_as_well():
    model = ConvNet().eval()
    before = traces(model)
    with as_found(model, CPU):
        model.norm.running_mean.fill_(7)
    assert traces(model) == before


def test_what_it_yields_to_may_be_a_function():
    with as_found(lambda x: x, CPU), contextlib.suppress(ValueError):
        raise ValueError


def test_the_model_is_the_same_inside():
    model = Blocks()
    expected = model(constant())
    with as_found(model, CPU):
        assert torch.equal(model(constant()), expected)


# --- layer_output ---


def test_a_layer_is_read_with_its_graph():
    model = ConvNet().eval()
    inputs = varied((2, 1, 10, 10)).requires_grad_()
    found = layer_output(model, model.norm, inputs)
    expected = model.norm(model.conv(inputs))
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), inputs)[0])


def test_a_forward_may_end_at_the_layer():
    model = NoModel()
    reader = nn.Identity()
    pair = nn.Sequential(reader, model)
    assert torch.equal(layer_output(pair, reader, constant(), go_on=False), constant())
    assert model.calls == 0
    before = traces(pair)
    with pytest.raises(ZeroDivisionError):
        layer_output(pair, reader, constant())
    assert traces(pair) == before


def test_ending_there_is_not_taken_for_an_error_of_the_model():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, inputs):
            try:
                return self.layer(inputs)
            except Exception:
                return self.layer(0 * inputs)

    model = Careful()
    found = layer_output(model, model.layer, constant(), go_on=False)
    assert torch.equal(found, constant())


def test_a_tuple_of_one_tensor_is_opened():
    class Tuple(nn.Module):
        def forward(self, inputs):
            return (2 * inputs,)

    layer = Tuple()
    found = layer_output(lambda x: layer(x)[0], layer, constant())
    assert torch.equal(found, 2 * constant())


def test_a_layer_must_run_exactly_once():
    shared = nn.ReLU()
    twice = nn.Sequential(shared, nn.Identity(), shared)
    with pytest.raises(ValueError, match=r"layer must run once .* but ran 2 times"):
        layer_output(twice, shared, constant())
    with pytest.raises(ValueError, match=r"layer must run once .* but ran 0 times"):
        layer_output(nn.Identity(), shared, constant())
