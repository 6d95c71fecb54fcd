"""Monotonicity of evidence and the sanity check by cascading randomisation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from captum_extremal import ExtremalResult
from captum_extremal.benchmark import (
    Options,
    monotonicity,
    plot_sanity,
    randomised,
    rank_correlation,
    sanity_check,
)
from tiny_models import ConvNet, traces

# --- monotonicity ---

AREAS = (0.4, 0.1, 0.2)  # in any order


@pytest.mark.parametrize(
    ("scores", "share", "share_tested", "tested"),
    [
        ([[3.0, 1.0, 2.0]], 1.0, 1.0, 1),  # rises, no area suffices
        ([[9.0, 2.0, 1.0]], 0.0, 0.0, 1),  # falls below a* = 0.4
        ([[1.0, 2.0, 9.0]], 1.0, math.nan, 0),  # a* = 0.2: one area below it
        ([[1.0, 9.0, 2.0]], 1.0, math.nan, 0),  # a* = 0.1: falls only above
        ([[9.0, 1.0, 1.0]], 1.0, 1.0, 1),  # equal scores are in order
        ([[3.0, 1.0, 2.0], [9.0, 2.0, 1.0], [0.0, 9.0, 0.0]], 2 / 3, 0.5, 2),
    ],
)
def test_the_papers_test_by_hand(scores, share, share_tested, tested):
    found = monotonicity(AREAS, torch.tensor(scores), torch.full((len(scores),), 5.0))
    assert found.share == pytest.approx(share)
    assert found.share_tested == pytest.approx(share_tested, nan_ok=True)
    assert (found.images, found.tested) == (len(scores), tested)


def test_it_agrees_with_the_result():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 3, generator=generator)
    result = ExtremalResult(
        torch.zeros(50, 3, 1, 2, 2), AREAS, scores, scores, scores[:, 0], scores[:, 0]
    )
    found = monotonicity(AREAS, scores, result.input_score)
    assert found.share == pytest.approx(float(result.is_monotonic().float().mean()))


@pytest.mark.parametrize(
    ("areas", "scores", "input_score", "text"),
    [
        (
            (0.1,),
            torch.zeros(2, 2),
            torch.zeros(2),
            r"shape \(N, 1\), none of them 0",
        ),
        ((0.1,), torch.zeros(0, 1), torch.zeros(0), "scores must be of shape"),
        ((0.1,), torch.zeros(2, 1), torch.zeros(3), "input_score must be of shape"),
        ((1.5,), torch.zeros(2, 1), torch.zeros(2), "area must lie in"),
        ((0.1,), torch.full((2, 1), math.nan), torch.zeros(2), "scores must be num"),
        ((0.1,), torch.zeros(1, 1), torch.full((1,), math.nan), "input_score must be"),
    ],
)
def test_bad_scores(areas, scores, input_score, text):
    with pytest.raises(ValueError, match=text):
        monotonicity(areas, scores, input_score)


# --- randomisation ---


def test_rank_correlation_is_scipys():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 5, (4, 1, 6, 7), generator=generator).double()  # ties
    second = first + torch.randint(0, 9, first.shape, generator=generator)
    expected = [
        spearmanr(a.flatten(), b.flatten()).statistic
        for a, b in zip(first, second, strict=True)
    ]
    assert rank_correlation(first, second).tolist() == pytest.approx(expected)
    assert rank_correlation(first, -first).tolist() == pytest.approx([-1.0] * 4)


def test_a_constant_map_or_a_nan_has_no_rank():
    first = torch.rand(2, 9)
    second = torch.stack([torch.ones(9), torch.rand(9)])
    second[1, 4] = math.nan
    assert rank_correlation(first, second).isnan().tolist() == [True, True]
    with pytest.raises(ValueError, match="maps must be of one shape"):
        rank_correlation(first, second[:1])


def test_layers_are_randomised_from_the_output_down():
    torch.manual_seed(0)
    model = ConvNet(3).eval()
    nn.init.uniform_(model.norm.weight)
    nn.init.uniform_(model.norm.running_var)
    model.norm.num_batches_tracked.fill_(7)
    before = traces(model)
    named = dict(model.named_parameters())
    untouched = []
    for layer, changed in randomised(model):
        new = dict(changed.named_parameters())
        same = {it for it in named if torch.equal(new[it], named[it])}
        untouched.append((layer, sorted(same & {it for it in named if "weight" in it})))
        assert torch.equal(changed.norm.num_batches_tracked, torch.tensor(7))
        kept = torch.equal(changed.norm.running_var, model.norm.running_var)
        assert kept == ("norm.weight" in untouched[-1][1])
        for name in named:  # the same values, in another order
            assert torch.equal(
                new[name].flatten().sort()[0], named[name].flatten().sort()[0]
            )
    assert untouched == [
        ("intact", ["conv.weight", "linear.weight", "norm.weight"]),
        ("linear", ["conv.weight", "norm.weight"]),
        ("norm", ["conv.weight"]),
        ("conv", []),
    ]
    assert traces(model) == before


def test_the_seed_and_the_layers_matter():
    model = ConvNet(3).eval()

    def last(**options):
        *_, (_, changed) = randomised(model, **options)
        return torch.cat([it.flatten() for it in changed.parameters()])

    assert torch.equal(last(), last())
    assert not torch.equal(last(), last(seed=1))
    names = [name for name, _ in randomised(model, ["linear"])]
    assert names == ["intact", "linear"]
    for wrong in ("relu", "nothing"):
        with pytest.raises(ValueError, match=f"with parameters, got '{wrong}'"):
            randomised(model, [wrong])


def test_a_map_of_the_model_is_lost_and_one_of_the_image_is_not():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    inputs, target = torch.rand(2, 3, 16, 16), torch.tensor([1, 2])
    options = Options(areas=(0.1, 0.3), steps=3, game="hybrid")
    methods = ["centre", "gradient", "extremal"]
    found = sanity_check(model, inputs, target, methods, options, seed=3)
    assert list(found) == methods
    assert list(found["gradient"]) == ["intact", "6", "2", "0"]
    for name in methods:
        assert found[name]["intact"] == pytest.approx([1.0, 1.0])
    assert found["centre"]["0"] == pytest.approx([1.0, 1.0])
    assert max(found["gradient"]["0"]) < 0.5
    figure = plot_sanity(found, {"gradient": 0.25})
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["chance"].get_ydata() == [0.25, 0.25]
    assert [it.get_text() for it in axes.get_legend().get_texts()] == methods
    assert lines["gradient"].get_ydata()[-1] == pytest.approx(
        sum(found["gradient"]["0"]) / 2
    )
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "intact", "6", "2", "0",
    ]  # fmt: skip


def test_the_band_is_a_standard_error_and_nothing_lies_outside_the_figure():
    (axes,) = plot_sanity({"ig": {"intact": [1.0, 1.0], "fc": [-0.9, -0.7]}}).axes
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert min(band) == pytest.approx(-0.8 - 0.1)  # 0.1 = 0.1414 / sqrt(2)
    assert axes.get_ylim()[0] == pytest.approx(-0.95)
