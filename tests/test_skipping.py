"""An overwritten layer: what is passed over, and what must not be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_extremal import ChannelExtremalPerturbation, ChannelSolver
from captum_extremal._base import skipping
from captum_extremal._base.layer import Layer

SOLVER = ChannelSolver(iterations=3, rounds=1)


class Counting(nn.Module):
    """Hands its input on, doubled, and counts."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return 2 * x


def chain():
    """Two containers: the layer is `model[1][1]`."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(Counting(), nn.Conv2d(1, 6, 3)),
        nn.Sequential(Counting(), nn.Conv2d(6, 6, 3), nn.Tanh()),
        nn.Conv2d(6, 3, 2),
        nn.Flatten(),
    ).eval()


def inputs_of(images=2):
    torch.manual_seed(1)
    return torch.randn(images, 1, 6, 6)


def optimize(model, layer, at_input=False, inputs=None):
    method = ChannelExtremalPerturbation(model, layer, solver=SOLVER)
    inputs = inputs_of() if inputs is None else inputs
    return method.optimize(inputs, 1, (1, 2, 4), None, at_input)


def same(one, other):
    assert torch.equal(one.masks, other.masks)
    for name in ("scores", "complement_scores", "input_score", "perturbed_score"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


class Model(nn.Module):
    """Some parts, and how they are run."""

    def __init__(self, run, *parts):
        super().__init__()
        self.run, self.parts = run, nn.ModuleList(parts)

    def forward(self, x):
        return self.run(x, *self.parts)


def total(x):
    return x.sum((1, 2, 3))[:, None]


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(96, 3))


# Each a model, a layer of it, the parts that are passed over: they run once to read the
# layer and once to compare; and how often the others run at least.


def alone():
    model = chain()
    return model, model[1][1], [model[0][0], model[1][0]], {}


def inside():
    """The chain's own input is seen by others."""
    stem, body = Counting(), chain()
    model = Model(lambda x, stem, body: body(y := stem(x)) + total(y) / 36, stem, body)
    return model, body[1][1], [body[0][0]], {stem: 5}


def in_place():
    """The front changes its input."""
    body = nn.ReLU(inplace=True), Counting(), nn.Conv2d(1, 6, 3), nn.Tanh()
    parts = nn.Sequential(*body), linear()
    model = Model(lambda x, body, end: end(body(y := 1 * x)) + total(y), *parts)
    return model, parts[0][3], [], {parts[0][1]: 5}


def called_twice():
    body = chain()
    model = Model(lambda x, body: body(x) + total(body[0](x)), body)
    return model, body[1][1], [], {body[0][0]: 10}


def only_a_list():
    def run(x, body, end):
        seen = []
        for part in body:
            x = part(x)
            seen.append(x.mean((1, 2, 3)))
        return end(x) + sum(seen)[:, None]

    body = nn.Sequential(nn.Conv2d(1, 6, 3), Counting(), nn.Tanh())
    return Model(run, body, linear()), body[1], [], {body[1]: 5}


def own_forward():
    """The inner chain of the second container alone may be passed over."""

    class Skip(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + x.flatten(1).mean(1, keepdim=True)

    model = nn.Sequential(Skip(*chain()))
    inner = model[0]
    return model, inner[1][1], [inner[1][0]], {inner[0][0]: 5}


def shared():
    counting, twice = Counting(), nn.Tanh()
    model = nn.Sequential(
        counting, nn.Conv2d(1, 6, 3), twice, nn.Conv2d(6, 6, 3), twice,
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    return model, model[3], [], {counting: 5}


@pytest.mark.parametrize(
    "build", [alone, inside, in_place, called_twice, only_a_list, own_forward, shared]
)
@pytest.mark.parametrize("at_input", [False, True])
def test_what_nothing_else_sees_is_passed_over_with_the_same_result(
    monkeypatch, build, at_input
):
    model, layer, passed, others = build()
    found = optimize(model, layer, at_input)
    assert [part.calls for part in passed] == [2] * len(passed)
    assert all(part.calls > least for part, least in others.items())
    torch.testing.assert_close(found.input_score, model(inputs_of())[:, 1])
    monkeypatch.setattr(skipping, "_is_plain", lambda module: False)
    expected = optimize(model, layer, at_input)
    assert all(part.calls > 8 for part in passed)
    same(found, expected)


def test_a_second_call_counts_where_the_outputs_hide_it():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.least = nn.Sequential(Counting(), nn.Conv2d(1, 6, 3)), 0.0

        def forward(self, x):
            gate = self.body(x).amax((1, 2, 3))[:, None] > self.least
            return self.body[0](x).flatten(1) * gate

    model, inputs = Gated(), inputs_of(1)
    # Shut for the halved activations that are compared, open for the whole ones.
    model.least = 0.75 * model.body(inputs).max()
    method = ChannelExtremalPerturbation(model, model.body[1])
    found = method.evaluate(inputs, torch.ones(1, 1, 6), 1)
    torch.testing.assert_close(found, model(inputs)[:, None, 1])
    assert found != 0


@pytest.mark.parametrize(
    "place", [lambda m: m[0][0], lambda m: m[1], lambda m: m[1][1]]
)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_the_users_hooks_fire_at_each_forward(place, kind):
    model, seen = chain(), []
    register = getattr(place(model), f"register_{kind}_hook")
    handle = register(lambda *_: seen.append(kind))
    optimize(model, model[1][1])
    assert model[0][0].calls > 5
    if kind != "full_backward":
        assert len(seen) == model[0][0].calls
    handle.remove()


def test_hooks_before_the_layer_see_what_the_model_gives_it():
    model, seen = chain(), []
    hook = lambda _m, args: seen.append(args[0].shape[1])  # noqa: E731
    handle = model[1][1].register_forward_pre_hook(hook)
    optimize(model, model[1][1], at_input=True)
    assert set(seen) == {6}
    handle.remove()


def test_hooks_of_the_user_that_change_the_layer_are_part_of_the_model():
    model = chain()
    handle = model[1][1].register_forward_hook(lambda _m, _i, out: 3 * out)
    found = optimize(model, model[1][1])
    torch.testing.assert_close(found.input_score, model(inputs_of())[:, 1])
    handle.remove()


def test_the_layer_may_be_anywhere_in_what_is_passed_over():
    model = chain()
    for layer in (model[0], model[0][1], model[1], model[1][2]):
        found = optimize(model, layer)
        torch.testing.assert_close(found.input_score, model(inputs_of())[:, 1])


def test_nothing_is_left_behind_when_the_body_fails():
    model = chain()
    layer = Layer(model, model[1][1], at_input=False, device_ids=None)
    layer.read([lambda: model(inputs_of())])
    layer.compare(lambda: model(inputs_of(3)), torch.zeros(3, 6, 2, 2))
    before = [sorted(vars(module)) for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    context = layer.overwritten()
    context.__enter__()
    assert [sorted(vars(module)) for module in model.modules()] != before
    error = ZeroDivisionError()
    assert context.__exit__(ZeroDivisionError, error, None) is False
    assert [sorted(vars(module)) for module in model.modules()] == before
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last]
)
def test_the_next_module_may_work_in_place_and_take_views(memory_format):
    def model_of(inplace):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 6, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(96, 3)
        return nn.Sequential(*layers).to(memory_format=memory_format)

    inputs = inputs_of().to(memory_format=memory_format)
    models = model_of(True), model_of(False)
    one, other = (optimize(model, model[0], inputs=inputs) for model in models)
    same(one, other)


def test_the_order_of_memory_stays_where_a_view_needs_it():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Identity(), nn.Linear(96, 3))

    def forward(x):
        hidden = model[1](model[0](x))
        return model[2](hidden.view(len(hidden), -1))

    assert optimize(forward, model[1]).counts == (1, 2, 4)


# --- what cannot be seen in the containers, but in the outputs ---


class Keeps(nn.Module):
    def forward(self, x):
        self.kept = x
        return x


class Adds(nn.Module):
    def __init__(self, keeper):
        super().__init__()
        self.keeper = [keeper]

    def forward(self, x):
        return x + self.keeper[0].kept


def keeping():
    keeper = Keeps()
    body = nn.Conv2d(1, 6, 3), keeper, nn.Conv2d(6, 6, 3, padding=1), nn.Tanh()
    return nn.Sequential(*body, Adds(keeper), nn.Flatten(), nn.Linear(96, 3)), 2


class Residual(nn.Sequential):
    def __call__(self, x):
        return x + super().__call__(x)


def residual():
    inner = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1), nn.Tanh()
    return nn.Sequential(Residual(*inner), nn.Flatten(), nn.Linear(36, 3)), "0.1"


class Reversed(nn.Sequential):
    def __iter__(self):
        return iter(list(super().__iter__())[::-1])


def reversed_chain():
    inner = nn.Tanh(), nn.Conv2d(6, 6, 1), nn.Conv2d(1, 6, 3)
    return nn.Sequential(Reversed(*inner), nn.Flatten(), nn.Linear(96, 3)), "0.1"


class Around(nn.Module):
    """Runs a part of its body past its hooks, or changes what the body is given."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        first = nn.ReLU(inplace=True) if kind != "called" else nn.Conv2d(1, 1, 1)
        self.body = nn.Sequential(first, nn.Conv2d(1, 6, 3), nn.Tanh())
        self.end = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))

    def forward(self, x):
        x = 1 * x
        if self.kind == "keyword":
            out = self.end(self.body(input=x))
        else:
            out = self.end(self.body(x))
        if self.kind == "called":
            x = self.body[0].forward(x)
        return out + x.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize(
    "build",
    [
        keeping,
        residual,
        reversed_chain,
        lambda: (Around("called"), "body.1"),
        lambda: (Around("keyword"), "body.1"),
        lambda: (Around("in place"), "body.1"),
    ],
)
@pytest.mark.parametrize("images", [1, 4])
def test_what_the_outputs_betray_is_not_passed_over(build, images):
    torch.manual_seed(0)
    model, name = build()
    layer = model.get_submodule(str(name))
    inputs = inputs_of(images)
    masks = torch.ones(
        images, 2, layer(torch.zeros(1, layer.in_channels, 6, 6)).shape[1]
    )
    masks[:, 0, 0] = 0
    found, expected = (
        ChannelExtremalPerturbation(forward, layer).evaluate(inputs, masks, 1)
        for forward in (model, lambda x: model(x))
    )
    torch.testing.assert_close(found, expected)


def test_a_model_that_fails_in_the_comparison_alone_runs_as_usual():
    class Head(nn.Module):
        def forward(self, x):
            if 0 < x.abs().sum() < self.least:
                raise ArithmeticError
            return x.sum((2, 3))

    model = nn.Sequential(Counting(), nn.Conv2d(1, 6, 3), Head())
    model[2].least = 0.9 * model[1](2 * inputs_of()).abs().sum()
    masks = torch.ones(2, 1, 6)
    found = ChannelExtremalPerturbation(model, model[1]).evaluate(inputs_of(), masks, 1)
    assert model[0].calls == 2  # to read the layer, and to evaluate
    torch.testing.assert_close(found, model(inputs_of())[:, None, 1])


def test_hooks_before_the_layer_are_part_of_its_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    project = nn.Linear(6, 6)
    handle = model[1].register_forward_pre_hook(lambda _m, args: (project(args[0]),))
    inputs, masks = torch.randn(4, 4), torch.ones(4, 1, 6)
    masks[:, :, :2] = 0
    found, expected = (
        ChannelExtremalPerturbation(forward, model[1]).evaluate(
            inputs, masks, 0, attribute_to_layer_input=True
        )
        for forward in (model, lambda x: model(x))
    )
    torch.testing.assert_close(found, expected)
    handle.remove()


def test_hooks_on_all_modules_see_every_forward():
    model, seen = chain(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _i, _o: seen.append(module) if module is model[0][0] else None
    )
    try:
        optimize(model, model[1][1])
    finally:
        handle.remove()
    assert len(seen) == model[0][0].calls > 5
