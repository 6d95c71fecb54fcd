"""What masks are laid on beside pixels and channels: features by number, places."""

import itertools

import pytest
import torch
from captum.attr import FeatureAblation, NoiseTunnel
from torch import nn

from captum_extremal import (
    ChannelDescent,
    ExtremalPerturbation,
    ExtremalResult,
    FadePerturbation,
    GradientSolver,
    LayerExtremalPerturbation,
    LevelSetSolver,
    SearchSolver,
    SwapSolver,
)
from captum_extremal.attribution.input_masks import InputMasks
from captum_extremal.sites.input import InputSite
from captum_extremal.solvers import Solution
from captum_extremal.visualization import plot_result

WORTH = torch.tensor([0.0, 3.0, 0.0, -2.0, 1.0, 0.5])


def table(x):
    """A model of a table (N, 6), with one pair that is worth more together."""
    return x @ WORTH + x[:, 0] * x[:, 5]


def quarters(side=8):
    """Four superpixels, numbered as Captum's would be."""
    half = torch.arange(side) // (side // 2)
    return (2 * half[:, None] + half).expand(1, 1, side, side)


# --- features by number ---


@pytest.mark.parametrize("game", ["preservation", "deletion", "hybrid"])
def test_columns_of_a_table_are_the_best_of_all_sets(game):
    x = torch.tensor([[1.0, 1, 1, 1, 1, 1], [2.0, -1, 0, 1, 3, 1]])
    method = ExtremalPerturbation(table, "fade")
    columns = torch.arange(6)
    result = method.optimize(x, areas=[1, 2, 0.5], feature_mask=columns, game=game)
    assert result.areas == pytest.approx([1 / 6, 2 / 6, 0.5])
    assert result.masks.shape == (2, 3, 6)
    found = method.evaluate(x, result.masks, feature_mask=columns, game=game)
    for image, (place, count) in itertools.product(range(2), enumerate([1, 2, 3])):
        assert result.masks[image, place].sum() == count
        sets = torch.zeros(1, 0, 6)
        for kept in itertools.combinations(range(6), count):
            mask = torch.zeros(1, 1, 6)
            mask[..., list(kept)] = 1
            sets = torch.cat([sets, mask], dim=1)
        rewards = method.evaluate(
            x[image : image + 1], sets, feature_mask=columns, game=game
        )
        assert found[image, place] == pytest.approx(float(rewards.max()))


def test_superpixels_of_a_picture():
    def upper_right(x):
        return x[:, :, :4, 4:].mean((1, 2, 3))

    method = ExtremalPerturbation(upper_right, "fade")
    x = torch.rand(2, 3, 8, 8) + 1
    result = method.optimize(x, areas=1, feature_mask=quarters())
    expected = torch.zeros(8, 8)
    expected[:4, 4:] = 1
    assert torch.equal(result.masks, expected.expand(2, 1, 1, 8, 8))
    attribution = method.attribute(x, areas=1, feature_mask=quarters())
    assert torch.equal(attribution, expected.expand_as(x))
    assert result.scores[:, 0].tolist() == pytest.approx(upper_right(x).tolist())
    assert "SwapSolver" in result.settings["solver"]


def test_the_same_format_as_feature_ablation():
    x = torch.rand(1, 6) + 1
    numbers = torch.tensor([[0, 1, 1, 2, 3, 3]])
    ablated = FeatureAblation(table).attribute(x, feature_mask=numbers)
    found = ExtremalPerturbation(table, "fade").attribute(
        x, areas=1, feature_mask=numbers
    )
    assert torch.equal(found > 0, ablated == ablated.max())


@pytest.mark.parametrize(
    "numbers",
    [
        torch.tensor([0, 1, 1, 0]),  # along the last axis
        torch.tensor([[[7], [7], [9]]]),  # of channels
        torch.arange(12).view(1, 3, 4) % 5 - 2,  # of both, with gaps and signs
    ],
)
def test_numbers_broadcast_as_captums_do(numbers):
    x = torch.rand(1, 3, 4)
    weights = torch.rand(3, 4)
    method = ExtremalPerturbation(lambda x: (x * weights).sum((1, 2)), "fade")
    result = method.optimize(x, areas=1, feature_mask=numbers)
    everywhere = numbers.expand(1, 3, 4)
    groups = everywhere.unique()
    sums = torch.stack([(x * weights)[everywhere == n].sum() for n in groups])
    best = (everywhere == groups[sums.argmax()]).float()
    assert torch.equal(result.masks[0].expand(1, 3, 4), best)
    attribution = method.attribute(x, areas=1, feature_mask=numbers)
    assert torch.equal(attribution, best)


def test_each_example_may_have_its_own_features():
    numbers = torch.tensor([[[0, 0, 1, 1]], [[0, 1, 1, 0]]])
    x = torch.tensor([[[1.0, 1, 5, 5]], [[9.0, 1, 1, 9]]])
    method = ExtremalPerturbation(lambda x: x.sum((1, 2)), "fade")
    masks = method.optimize(x, areas=0.5, feature_mask=numbers).masks
    assert masks.flatten(1).tolist() == [[0, 0, 1, 1], [1, 0, 0, 1]]
    rewards = method.evaluate(x, masks, feature_mask=numbers)
    assert rewards.tolist() == [[10], [18]]


def test_a_number_in_two_tensors_is_one_feature():
    left, right = torch.ones(1, 2, 3), torch.ones(1, 4)
    numbers = (torch.tensor([[[0], [1]]]), torch.tensor([1, 1, 0, 2]))

    def model(a, b):
        return a[:, 0].sum(1) + 2 * b[:, 2] + b[:, 3]

    method = ExtremalPerturbation(model, "fade")
    result = method.optimize((left, right), areas=[1], feature_mask=numbers)
    assert result.masks[0].tolist() == [[[[1, 1, 1], [0, 0, 0]]]]
    assert result.masks[1].tolist() == [[[0, 0, 1, 0]]]
    assert result.scores.tolist() == [[5]]
    attributions = method.attribute((left, right), areas=1, feature_mask=numbers)
    assert [tuple(each.shape) for each in attributions] == [(1, 2, 3), (1, 4)]


def test_every_pixel_by_its_number_is_the_same_search():
    weights = torch.randn(6, 6)
    x = torch.ones(1, 1, 6, 6)

    def model(x):
        return (x[:, 0] * weights).sum((1, 2)).tanh()

    free = ExtremalPerturbation(model, "fade", SwapSolver())
    by_number = ExtremalPerturbation(model, "fade")
    numbers = torch.arange(36).view(1, 1, 6, 6)
    assert torch.equal(
        free.optimize(x, areas=[0.1, 0.5]).masks,
        by_number.optimize(x, areas=[0.1, 0.5], feature_mask=numbers).masks,
    )


@pytest.mark.parametrize("solver", [SearchSolver(64), ChannelDescent()])
def test_other_solvers_take_features_too(solver):
    def black_box(x):
        return table(x) if solver.needs_gradient else torch.tensor(table(x).tolist())

    method = ExtremalPerturbation(black_box, "fade", solver)
    masks = method.optimize(
        torch.ones(1, 6), areas=1, feature_mask=torch.arange(6)
    ).masks
    assert masks.flatten().tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_in_other_types(dtype):
    x = torch.ones(1, 6, dtype=dtype)
    method = ExtremalPerturbation(lambda x: x @ WORTH.to(dtype), "fade")
    attribution = method.attribute(x, areas=2, feature_mask=torch.arange(6))
    assert attribution.dtype == dtype
    assert attribution.tolist() == [[0, 1, 0, 0, 1, 0]]


def test_rivals_of_features():
    x = torch.ones(2, 6)
    method = ExtremalPerturbation(table, "fade")
    result = method.optimize(x, areas=[1, 2], feature_mask=torch.arange(6))
    verdict = result.rejudge(method, x, feature_mask=torch.arange(6), random_masks=3)
    assert set(verdict.rivals) == {"again", "search", "random"}
    assert verdict.is_best().all()
    assert (verdict.rivals["random"] < result.scores).any()


ROW, COLUMNS = torch.ones(1, 6), torch.arange(6)
OWN = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize(
    ("x", "arguments", "error", "message"),
    [
        (ROW, {}, ValueError, r"inputs must be of shape \(N, C, \*S\)"),
        (ROW, {"feature_mask": torch.arange(6.0)}, TypeError,
         "feature_mask must be a tensor of integers, got torch.float32"),
        (ROW, {"feature_mask": COLUMNS > 2}, TypeError,
         "feature_mask must be a tensor of integers, got torch.bool"),
        (ROW, {"feature_mask": torch.arange(5)}, ValueError,
         r"feature_mask must broadcast to inputs \(1, 6\), got \(5,\)"),
        (torch.ones(2, 6), {"feature_mask": OWN}, ValueError,
         "the same number of features for each example, got 2 and 3"),
        (ROW, {"feature_mask": (COLUMNS, COLUMNS)}, ValueError,
         "feature_mask must hold as many tensors as inputs, 1, got 2"),
        (ROW, {"feature_mask": COLUMNS, "areas": 7}, ValueError,
         "area must be at most the inputs' 6 features, got 7; a fraction is a float"),
        (ROW, {"feature_mask": COLUMNS, "areas": 0}, ValueError,
         "area must be at least 1 feature, got 0"),
        (ROW / 0 * 0, {"feature_mask": COLUMNS}, ValueError, "inputs must be finite"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_are_named(x, arguments, error, message):
    with pytest.raises(error, match=message):
        ExtremalPerturbation(table, "fade").attribute(x, **arguments)


def test_a_table_is_not_blurred():
    with pytest.raises(ValueError, match=r"must not be a blur for inputs \(N, F\)"):
        ExtremalPerturbation(table).attribute(
            torch.ones(1, 6), feature_mask=torch.arange(6)
        )


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(1, 2, 6), r"of shape \(1, A, 1, 8, 8\), got \(1, 2, 6\)"),
        (torch.rand(1, 2, 1, 8, 8), "constant on each feature of feature_mask"),
        (torch.full((1, 2, 1, 8, 8), 1.5), r"must lie in \[0, 1\]"),
    ],
)
def test_masks_that_are_not_of_the_features(masks, message):
    method = ExtremalPerturbation(lambda x: x.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=message):
        method.evaluate(torch.ones(1, 3, 8, 8), masks, feature_mask=quarters())


# --- places of a layer ---


class Places(nn.Module):
    """Looks at one corner of its feature map; the layer in front is free to be cut."""

    def __init__(self, rows=slice(0, 4), columns=slice(8, 12)):
        super().__init__()
        self.features = nn.Conv2d(1, 3, 1, bias=False)
        nn.init.ones_(self.features.weight)
        self.rows, self.columns = rows, columns

    def forward(self, x):
        maps = self.features(x)
        return maps[:, :, self.rows, self.columns].mean((2, 3))


def test_places_of_a_feature_map():
    model = Places()
    method = LayerExtremalPerturbation(model, model.features)
    x = torch.ones(2, 1, 12, 12)
    result = method.optimize(x, 1, areas=[1 / 9, 32])
    assert result.areas == pytest.approx([1 / 9, 32 / 144])
    assert result.masks.shape == (2, 2, 1, 12, 12)
    kept = result.masks >= 0.5
    assert kept.sum(dim=(2, 3, 4)).tolist() == [[16, 32]] * 2
    assert (kept[:, :, 0, 0:4, 8:12].float().mean((2, 3)) > 0.9).all()
    assert (result.scores > 0.9).all()
    assert "LevelSetSolver" in result.settings["solver"]
    assert result.settings["layer"] == "Conv2d"


def test_the_attribution_is_of_the_activation_and_interpolates():
    model = Places()
    method = LayerExtremalPerturbation(model, model.features)
    attribution = method.attribute(torch.ones(1, 1, 12, 12), 0, areas=[0.1, 0.2])
    assert attribution.shape == (1, 3, 12, 12)
    assert torch.equal(attribution[:, :1].expand(1, 3, 12, 12), attribution)
    larger = method.interpolate(attribution, (24, 24))
    assert larger.shape == (1, 3, 24, 24)
    assert larger[0, 0, :8, 16:].mean() > larger[0, 0, 8:].mean()


class Tokens(nn.Module):
    """A small transformer block over (N, tokens, features), read out by weights."""

    def __init__(self, count=6):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.worth = torch.linspace(-1, 2, count)

    def forward(self, x):
        return self.block(x).pow(2).mean(2) @ self.worth[:, None]


def test_tokens_are_kept_one_by_one_and_are_the_best_of_all_sets():
    model = Tokens().eval()
    method = LayerExtremalPerturbation(model, model.block)
    x = torch.randn(2, 6, 8)
    result = method.optimize(x, 0, areas=[1, 2, 0.5], channel_dim=-1)
    assert set(result.masks.unique().tolist()) == {0.0, 1.0}
    assert "SwapSolver" in result.settings["solver"]
    for place, count in enumerate([1, 2, 3]):
        sets = [
            torch.zeros(6).index_fill(0, torch.tensor(kept), 1.0)
            for kept in itertools.combinations(range(6), count)
        ]
        masks = torch.stack(sets).expand(2, -1, -1).unsqueeze(2)
        rewards = method.evaluate(x, masks, 0, channel_dim=2)
        torch.testing.assert_close(result.scores[:, place], rewards.amax(dim=1))


def test_channels_last_have_places_along_two_axes():
    layer = nn.Identity()

    def model(x):
        return layer(x)[:, 2:4, :3].mean((1, 2, 3))

    method = LayerExtremalPerturbation(model, layer)
    result = method.optimize(torch.ones(1, 6, 6, 5), areas=6, channel_dim=-1)
    assert result.masks.shape == (1, 1, 1, 6, 6)
    assert result.scores.item() > 0.6
    attribution = method.attribute(torch.ones(1, 6, 6, 5), areas=6, channel_dim=-1)
    assert attribution.shape == (1, 6, 6, 5)


def test_what_is_left_out_becomes_the_baseline():
    layer = nn.Identity()

    def model(x):
        return layer(x).flatten(1).sum(dim=1)

    method = LayerExtremalPerturbation(model, layer)
    masks = torch.zeros(1, 1, 1, 2, 2)
    masks[..., 0, :] = 1
    for baseline in (0.5, torch.full((1, 3, 1, 1), 0.5)):
        reward = method.evaluate(
            torch.ones(1, 3, 2, 2), masks, layer_baselines=baseline
        )
        assert reward.item() == 3 * (2 + 2 * 0.5)


def test_the_layers_input_and_several_tensors():
    class Add(nn.Module):
        def forward(self, a, b):
            return a + b

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = Add()

        def forward(self, x):
            return self.add(x, 2 * x)[..., 1:3].sum((1, 2))

    model = Two()
    method = LayerExtremalPerturbation(model, model.add, solver=SwapSolver())
    x = torch.ones(1, 2, 8)
    asked = {"areas": 2, "attribute_to_layer_input": True, "channel_dim": -2}
    result = method.optimize(x, **asked)
    assert len(result.masks) == 2
    for mask in result.masks:
        assert mask.flatten().nonzero().flatten().tolist() == [1, 2]
    attributions = method.attribute(x, **asked)
    assert [tuple(each.shape) for each in attributions] == [(1, 2, 8)] * 2


def test_the_results_of_places_can_be_kept_and_challenged(tmp_path):
    model = Places()
    method = LayerExtremalPerturbation(model, model.features, solver=LevelSetSolver(20))
    x = torch.ones(1, 1, 12, 12)
    result = method.optimize(x, 0, areas=[0.1, 0.2])
    result.save(tmp_path / "places.safetensors")
    again = ExtremalResult.load(tmp_path / "places.safetensors")
    assert torch.equal(again.masks, result.masks)
    verdict = result.rejudge(method, x, 0, random_masks=4)
    assert (verdict.rewards >= verdict.rivals["random"]).all()


def test_ctrl_c_keeps_the_masks_of_places():
    class Interrupted:
        total_steps = 1

        def solve(self, problem, seed=0, on_step=None):
            masks = torch.ones(problem.num_cells, 1, *problem.sizes[0])
            return Solution((masks,), ended="interrupt")

    model = Places()
    method = LayerExtremalPerturbation(model, model.features, solver=Interrupted())
    for call in (method.attribute, method.optimize):
        with pytest.raises(KeyboardInterrupt) as caught:
            call(torch.ones(1, 1, 12, 12), 0, areas=1.0)
        assert caught.value.result.masks.shape == (1, 1, 1, 12, 12)


@pytest.mark.parametrize(
    ("activation", "options", "message"),
    [
        ((1, 4), {}, "layer must give channels at 1, 2 or 3 axes of places"),
        ((1, 4, 2, 2, 2, 2), {}, "channels at 1, 2 or 3 axes of places"),
        ((1, 4, 3, 1), {"areas": 5}, "at most the layer's 3 places, got 5"),
        ((1, 4, 3), {"areas": 0}, "area must be at least 1 place, got 0"),
        ((1, 4, 3), {"channel_dim": 3}, "channel_dim must lie in"),
    ],
)
def test_places_that_cannot_be_are_named(activation, options, message):
    layer = nn.Identity()
    method = LayerExtremalPerturbation(lambda x: layer(x).flatten(1).sum(1), layer)
    with pytest.raises(ValueError, match=message):
        method.attribute(torch.ones(activation), **options)


def test_masks_of_other_places_are_named():
    layer = nn.Identity()
    method = LayerExtremalPerturbation(lambda x: layer(x).flatten(1).sum(1), layer)
    with pytest.raises(ValueError, match=r"\(1, A, 1, 3, 3\), got \(1, 2, 4\)"):
        method.evaluate(torch.ones(1, 4, 3, 3), torch.ones(1, 2, 4))


def test_a_column_alone_is_a_table_too():
    def model(a, b):
        return a.sum(1) + 5 * b[:, 0]

    inputs = (torch.ones(2, 3), torch.ones(2, 1))
    numbers = (torch.arange(3), torch.tensor([3]))
    found = ExtremalPerturbation(model, "fade").attribute(
        inputs, areas=1, feature_mask=numbers
    )
    assert [each.tolist() for each in found] == [[[0, 0, 0]] * 2, [[1]] * 2]


def test_the_baseline_of_a_table_may_be_one_for_each_row():
    baseline = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    method = ExtremalPerturbation(lambda x: x.sum(1), FadePerturbation(baseline))
    x = torch.full((2, 2), 2.5)
    result = method.optimize(x, areas=1, feature_mask=torch.arange(2))
    assert result.masks[:, 0].tolist() == [[1, 0], [0, 1]]
    assert result.perturbed_score.tolist() == [3, 2]


def test_the_figures_of_masks_by_channel_say_what_they_lack(tmp_path):
    x = torch.rand(1, 5, 8, 8)
    bands = torch.arange(5).view(5, 1, 1)
    method = ExtremalPerturbation(lambda x: x[:, 3].mean((1, 2)), "fade")
    result = method.optimize(x, areas=[1], feature_mask=bands)
    assert result.masks.shape == (1, 1, 5, 8, 8)
    assert "<svg" in result.to_html()
    with pytest.raises(ValueError, match="images must be None for masks"):
        result.to_html(images=torch.rand(1, 3, 8, 8))
    assert result._repr_html_()
    with pytest.raises(ValueError, match="one for all channels, got"):
        plot_result(torch.rand(3, 8, 8), result)
    result.save(tmp_path / "bands.safetensors")
    again = ExtremalResult.load(tmp_path / "bands.safetensors")
    assert torch.equal(again.masks, result.masks)


def test_a_smooth_solver_shows_each_column_its_own_background():
    x, half = torch.tensor([[1.0, 1000.0]]), FadePerturbation(torch.tensor([0.5, 500]))

    def model(x):  # of a column that lies in [0.5, 1] under any mask
        return x[:, 1] / 1000 + (2 - x[:, 0]).log()

    method = ExtremalPerturbation(model, half, LevelSetSolver())
    masks = method.attribute(x, areas=1, feature_mask=torch.arange(2))
    assert masks.tolist() == [[0, 1]]


def test_infinite_slopes_promise_most():
    method = ExtremalPerturbation(lambda x: x.sqrt().sum(1), "fade")
    x = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    found = method.attribute(x, areas=2, feature_mask=torch.arange(4))
    assert found.tolist() == [[0, 0, 1, 1]]


def test_the_method_itself_is_its_first_rival(monkeypatch):
    asked = []
    x = torch.ones(1, 6)
    method = ExtremalPerturbation(table, "fade")
    result = method.optimize(x, areas=[1], feature_mask=torch.arange(6))
    solve = SwapSolver.solve
    monkeypatch.setattr(
        SwapSolver, "solve", lambda self, *a: (asked.append(a[1]), solve(self, *a))[1]
    )
    verdict = result.rejudge(
        method, x, feature_mask=torch.arange(6), random_masks=0, seed=5
    )
    assert asked == [5]
    assert list(verdict.rivals) == ["again", "search"]


def test_places_of_a_signal_are_smooth_and_tokens_are_not():
    layer = nn.Identity()
    method = LayerExtremalPerturbation(lambda x: layer(x).flatten(1).sum(1), layer)
    x = torch.rand(1, 4, 30)
    for dim, solver in ((-2, "LevelSetSolver"), (2, "SwapSolver")):
        result = method.optimize(x, areas=0.2, channel_dim=dim)
        assert solver in result.settings["solver"]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_model_behind_a_layer_gets_its_order_of_memory(order):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            y = self.conv(x)
            rows = y if order is torch.contiguous_format else y.permute(0, 2, 3, 1)
            return rows.view(len(y), -1).mean(dim=1)

    model = Viewing().eval().to(memory_format=order)
    x = torch.rand(2, 3, 8, 8).contiguous(memory_format=order)
    found = LayerExtremalPerturbation(model, model.conv).attribute(x, areas=4)
    assert found.shape == (2, 8, 6, 6)


def test_a_site_must_give_the_inputs_when_nothing_is_left_out():
    class Halved(InputMasks):
        def site(self, inputs):
            site = InputSite(inputs, FadePerturbation())
            site.inputs = lambda perturbed, images: (perturbed[0] / 2,)
            return site

    with pytest.raises(ValueError, match="InputSite must give the inputs for its last"):
        Halved(lambda x: x.sum((1, 2))).attribute(torch.ones(1, 1, 4), areas=0.5)


@pytest.mark.parametrize("count", [10, 60, 200])
@pytest.mark.parametrize(
    "solver", [SearchSolver(), LevelSetSolver(20), GradientSolver(iterations=20)]
)
def test_features_are_whole_for_any_solver(count, solver):
    worth = torch.linspace(1, 2, count)
    method = ExtremalPerturbation(lambda x: x @ worth, "fade", solver)
    result = method.optimize(
        torch.ones(1, count), areas=[1, 3], feature_mask=torch.arange(count)
    )
    assert set(result.masks.unique().tolist()) == {0.0, 1.0}
    assert result.masks.sum(dim=2).tolist() == [[1, 3]]
    assert result.scores[0].tolist() == pytest.approx(
        (result.masks[0] @ worth).tolist()
    )


def test_rivals_of_free_positions_hold_no_more_than_was_asked():
    def concave(x):
        return x.clamp(max=0.1).flatten(1).sum(1)

    method = ExtremalPerturbation(concave, "fade")
    x, columns = torch.ones(1, 200), torch.arange(200)
    result = method.optimize(x, areas=[1, 4], feature_mask=columns)
    verdict = result.rejudge(method, x, feature_mask=columns, random_masks=4)
    assert verdict.is_best().all()
    layer = nn.Identity()
    of_tokens = LayerExtremalPerturbation(lambda x: concave(layer(x)), layer)
    tokens = torch.ones(1, 197, 1)
    result = of_tokens.optimize(tokens, areas=[1, 4], channel_dim=-1)
    verdict = result.rejudge(of_tokens, tokens, random_masks=4, channel_dim=-1)
    assert verdict.is_best().all()


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        (torch.ones(1, 1, 4), TypeError, "of Given must be a tuple of 1 tensors"),
        (
            (torch.ones(2, 1, 4),),
            ValueError,
            r"Given .* \(1, 1, 4\), got \(2, 1",
        ),
        ((2 * torch.ones(1, 1, 4),), ValueError, r"of Given must lie in \[0, 1\]"),
        ((torch.ones(1, 1, 4).int(),), TypeError, "of Given must be a floating point"),
    ],
)
def test_what_a_solver_gives_is_checked(masks, error, message):
    class Given:
        def solve(self, problem, seed=0, on_step=None):
            return Solution(masks)

    method = ExtremalPerturbation(lambda x: x.sum((1, 2)), "fade", Given())
    with pytest.raises(error, match=f"the masks .*{message}"):
        method.attribute(torch.ones(1, 1, 4), areas=0.5)


def test_a_site_of_ones_own_under_captums_tools():
    class Places(InputMasks):
        def site(self, inputs):
            return InputSite(inputs, FadePerturbation())

    method = NoiseTunnel(Places(lambda x: x[:, 0, :2].sum(1)))
    found = method.attribute(torch.ones(1, 1, 4), stdevs=0.01, nt_samples=2, areas=0.5)
    assert found[0, 0, :2].min() > found[0, 0, 2:].max()
