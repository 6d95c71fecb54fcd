"""A layer is read and changed through hooks, and nothing else of the model."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from captum_extremal._base.layer import Layer, why_not_called
from tiny_models import ConvNet, NoModel, constant, traces, varied


def read(model, layer, inputs, **options):
    return Layer(model, layer).read_one(lambda: model(inputs), **options)


def test_what_is_read_is_not_changed_by_the_next_module():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten())
    layer = Layer(model, model[0])
    (found,) = layer.read([lambda: model(varied((2, 1, 6, 6)))])
    assert torch.equal(found, model[0](varied((2, 1, 6, 6))))
    assert found.min() < 0


def test_parts_of_a_batch_are_joined():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten())
    layer = Layer(model, model[1])
    parts = [lambda part=part: model(part) for part in varied((3, 1, 6, 6)).split(2)]
    (found,) = layer.read(parts)
    torch.testing.assert_close(found, model[:2](varied((3, 1, 6, 6))))


def test_a_layer_is_read_with_its_graph():
    model = ConvNet().eval()
    inputs = varied((2, 1, 10, 10)).requires_grad_()
    found = read(model, model.norm, inputs)
    expected = model.norm(model.conv(inputs))
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), inputs)[0])


def test_a_forward_may_end_at_the_layer():
    model = NoModel()
    reader = nn.Identity()
    pair = nn.Sequential(reader, model)
    assert torch.equal(read(pair, reader, constant(), go_on=False), constant())
    assert model.calls == 0
    before = traces(pair)
    with pytest.raises(ZeroDivisionError):
        read(pair, reader, constant())
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
    found = read(model, model.layer, constant(), go_on=False)
    assert torch.equal(found, constant())


def test_a_tuple_of_one_tensor_is_opened():
    class Tuple(nn.Module):
        def forward(self, inputs):
            return (2 * inputs,)

    layer = Tuple()
    found = read(lambda x: layer(x)[0], layer, constant())
    assert torch.equal(found, 2 * constant())


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


@pytest.mark.parametrize("form", [Pair, lambda *pair: pair])
def test_what_a_watcher_returns_goes_on_in_the_form_of_the_layer(form):
    class Two(nn.Module):
        def forward(self, x):
            return form(x, 2 * x)

    two = Two()
    with Layer(two, two).watched(lambda pair: tuple(3 * part for part in pair)):
        found = two(constant())
    assert type(found) is type(form(1, 2))
    assert torch.equal(found[1], 6 * constant())
    with Layer(two, two).watched(lambda _pair: None):
        assert torch.equal(two(constant())[1], 2 * constant())


def test_what_a_watcher_returns_goes_on_as_the_input_of_the_layer():
    bilinear = nn.Bilinear(3, 3, 2)
    left, right = torch.rand(2, 4, 3)
    with Layer(bilinear, bilinear, at_input=True).watched(lambda pair: pair[::-1]):
        found = bilinear(left, right)
    assert torch.equal(found, bilinear(right, left))


def test_a_layer_without_tensors_is_told_by_what_it_has():
    class Gives(nn.Module):
        def forward(self, value):
            return value

    layer = Gives()
    for value, kinds in (
        ([], "list"),
        ((), "nothing"),
        ((constant(), 1), "Tensor, in"),
    ):
        with pytest.raises(
            TypeError, match=f"return a tensor or a tuple .*got {kinds}"
        ):
            Layer(layer, layer).read([lambda value=value: layer(value)])
    two = constant(), constant()
    with pytest.raises(
        TypeError, match="return one tensor, got Tensor, Tensor; choose"
    ):
        read(layer, layer, two)
    with pytest.raises(
        TypeError, match="layer must take one tensor, got tuple; choose"
    ):
        Layer(layer, layer, at_input=True).read_one(lambda: layer(two))
    assert [*layer._forward_hooks, *layer._forward_pre_hooks] == []


def test_a_layer_must_run_exactly_once():
    shared = nn.ReLU()
    twice = nn.Sequential(shared, nn.Identity(), shared)
    with pytest.raises(
        ValueError, match=r"layer must be called once .* got 2 calls of ReLU$"
    ):
        read(twice, shared, constant())
    with pytest.raises(
        ValueError,
        match=r"layer must be called once .* got 0 calls of ReLU: it is none",
    ):
        read(nn.Identity(), shared, constant())


def test_why_a_layer_was_not_called_is_told():
    model = nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1))
    for other in (copy.deepcopy(model)[0], nn.ReLU()):
        assert "it is none of forward_func.modules()" in why_not_called(model, other)
    assert "out_proj" in why_not_called(model, model[1].out_proj)
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    assert "a GraphModule" in why_not_called(traced, getattr(traced, "0"))
    # Of a function nothing is known.
    assert "layer.forward(x)" in why_not_called(lambda x: x, nn.ReLU())
