"""`_model`: what a model is asked, and that it is left as it was found."""

from __future__ import annotations

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_extremal._base.model import (
    Watch,
    as_found,
    check_differentiable,
    training_layers,
    uncompiled,
)
from tiny_models import Blocks, ConvNet, constant, traces, varied

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


# --- check_differentiable ---


def test_a_model_made_in_inference_mode_is_refused():
    check_differentiable(Blocks())
    with torch.inference_mode():
        inside = Blocks()
        check_differentiable(nn.ReLU())
    for model in (inside, nn.Sequential(Blocks(), inside)):
        with pytest.raises(RuntimeError, match=r"made inside torch\.inference_mode"):
            check_differentiable(model)


def test_a_model_that_was_only_run_in_inference_mode_is_not():
    model = ConvNet().train()
    with torch.inference_mode():
        model(varied((2, 1, 10, 10)))
        check_differentiable(model)


def test_a_model_made_under_no_grad_is_not():
    with torch.no_grad():
        check_differentiable(Blocks())


def test_a_function_is_not_made_in_inference_mode():
    check_differentiable(lambda x: x)


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


def test_compiled_models_run_as_written_where_hooks_are_needed():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    fast = torch.compile(model, backend="eager")
    seen = []
    with torch.no_grad():
        fast(torch.ones(1, 2))
        model[0].register_forward_hook(lambda *_: seen.append("hook"))
        with uncompiled():
            found = fast(torch.ones(1, 2))
    assert seen == ["hook"]
    assert torch.equal(found, model(torch.ones(1, 2)))


# --- as_found and Watch: chance, and what is kept of a batch ---


def test_the_generators_of_python_and_numpy_are_put_back():
    before = traces(None)
    with as_found(Blocks(), CPU):
        random.random()
        np.random.rand()  # noqa: NPY002
    assert traces(None) == before


class Change(nn.Module):
    """Changes a row (K, 8) in some way."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.own = torch.Generator()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return self.change(self, x)


def count(module, x):
    if module.training:
        module.mean += x.mean(dim=0)
    return x


KINDS = {
    "functional dropout": lambda m, x: nn.functional.dropout(x, 0.5, m.training),
    "noise": lambda m, x: x + torch.randn_like(x) if m.training else x,
    "NumPy's noise": lambda m, x: (
        x + np.random.randn() if m.training else x  # noqa: NPY002
    ),
    "Python's noise": lambda m, x: x + random.random() if m.training else x,
    "statistics": count,
}
ALWAYS = {
    "dropout": lambda m, x: nn.functional.dropout(x, 0.5),
    "own generator": lambda m, x: x + torch.randn(x.shape, generator=m.own),
}


def warnings_of(model, rows=1):
    """What a watch says of a model: of one row, alone and with another."""
    watch = Watch(model, CPU)
    inputs = torch.arange(1.0, 17.0).reshape(2, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch.forwards():
            first, together = model(inputs[:1]), model(inputs)
        watch.warn(first, lambda: model(inputs[:1]), together)
        watch.warn(first, lambda: model(inputs[:1]), together)
    assert watch.warned == bool(caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_is_told_by_what_it_does(kind):
    model = nn.Sequential(Change(KINDS[kind])).train()
    with as_found(model, CPU):
        (text,) = warnings_of(model)
        assert text.startswith("forward_func is in training mode: its scores depend")
        assert warnings_of(model.eval()) == []


@pytest.mark.parametrize("kind", ALWAYS)
def test_chance_in_evaluation_mode_is_told(kind):
    with as_found(None, CPU):
        (text,) = warnings_of(Change(ALWAYS[kind]).eval())
    assert text.startswith("forward_func gives another score each time")


@pytest.mark.parametrize("kind", ["functional dropout", "noise", "NumPy's noise"])
def test_chance_inside_of_a_function_is_told(kind):
    model = Change(KINDS[kind]).train()
    with as_found(None, CPU):
        (text,) = warnings_of(lambda x: model(x))
        assert "a part in training mode" in text
        model.eval()
        assert warnings_of(lambda x: model(x)) == []


def test_normalisation_over_the_batch_is_told():
    def model(x):
        return x - x.mean(dim=0)

    (text,) = warnings_of(model)
    assert text.startswith("forward_func gives an example other scores in other batch")
    norm = nn.BatchNorm1d(8, track_running_stats=False).eval()
    assert len(warnings_of(lambda x: norm(torch.cat([x, 0 * x])))) == 1


@pytest.mark.parametrize(
    "model",
    [
        nn.Dropout(0.0).train(), nn.Linear(8, 2).train(), nn.LayerNorm(8).train(),
        # Random numbers that do not matter, and the rounding of bfloat16.
        lambda x: x + 0 * torch.rand_like(x),
        lambda x: x * (1 + 1e-3 * len(x)),
    ],
    ids=["no dropout", "linear", "LayerNorm", "unused", "rounding"],
)  # fmt: skip
def test_others_are_not_warned_of(model):
    with as_found(model, CPU):
        assert warnings_of(model) == []
