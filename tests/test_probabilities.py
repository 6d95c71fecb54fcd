"""Outputs -> probabilities, by the same rule in every command."""

from __future__ import annotations

import math
import re

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from captum_extremal.benchmark import ImageSet, Options, Plan, run
from captum_extremal.benchmark.datasets import Example
from captum_extremal.cli.main import main
from captum_extremal.models.networks import LoadedModel, Preprocess
from captum_extremal.models.probabilities import check_rule, probabilities, rule_for

SIZE = 16


def softmaxes(dtype):
    rows = torch.linspace(-3, 4, 3000).reshape(3, 1000).roll(1, 1)
    return rows.softmax(dim=1).to(dtype)


# --- the rule ---


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (torch.tensor([[0.7], [0.2]]), "sigmoid"),  # one score, even in [0, 1]
        (torch.tensor([[1.0], [1.0]]), "sigmoid"),
        (torch.zeros(2, 20), "sigmoid"),
        (torch.zeros(2, 80), "sigmoid"),
        (torch.zeros(2, 2), "softmax"),
        (torch.zeros(2, 1000), "softmax"),
        (torch.zeros(1000), "softmax"),
        (softmaxes(torch.float32), "outputs"),
        (softmaxes(torch.float64), "outputs"),
        (softmaxes(torch.float16), "outputs"),
        (softmaxes(torch.bfloat16), "outputs"),
        (softmaxes(torch.float32)[0], "outputs"),
        (torch.eye(3), "outputs"),
        (torch.eye(20), "outputs"),  # of 20 classes, but a softmax of them
        (torch.tensor([[0.2, 0.8], [0.9, 0.3]]), "softmax"),  # sums to 1 by chance
        (torch.tensor([[0.2, 0.8], [1.5, -0.5]]), "softmax"),
        (torch.tensor([[2.0, -1.0], [0.2, 0.8]]), "softmax"),
        (torch.linspace(-3, 4, 5).log_softmax(0)[None], "softmax"),
        (torch.full((1, 3), math.nan), "softmax"),
    ],
)
def test_what_auto_comes_to(outputs, expected):
    assert rule_for(outputs) == expected


def test_each_rule_by_its_formula():
    scores = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    total = math.e + math.e**2 + 1
    values = {
        "softmax": [math.e / total, math.e**2 / total, 1 / total],
        "sigmoid": [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2)), 0.5],
        "outputs": [1.0, 2.0, 0.0],
    }
    values["auto"] = values["softmax"]
    for rule, expected in values.items():
        found = probabilities(scores, rule)
        assert found[0].tolist() == pytest.approx(expected, abs=1e-15)
    with pytest.raises(ValueError, match="probability must be 'auto' or"):
        probabilities(scores, "logits")


@pytest.mark.parametrize("rule", ["softmax", "sigmoid", "outputs"])
def test_the_precision_is_that_of_the_outputs(rule):
    fine = torch.tensor([[1e-12, 0.5]], dtype=torch.float64)
    assert probabilities(fine, rule).dtype == torch.float64
    assert probabilities(fine.half(), rule).dtype == torch.float32
    assert probabilities(fine.bfloat16(), rule).dtype == torch.float32
    sure = torch.tensor([30.0, 0.0], dtype=torch.float64)  # 1 in float32
    assert float(probabilities(sure, "sigmoid")[0]) == 1 / (1 + math.exp(-30)) < 1


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, 12.0])
def test_outputs_that_are_no_probabilities(wrong):
    outputs = torch.tensor([[0.5, wrong]])
    with pytest.raises(ValueError, match=f"outputs in \\[0, 1\\], got {wrong:.4g}"):
        check_rule(outputs, "outputs")
    check_rule(outputs, "softmax")


# --- the commands ---


def network(count, *end):
    """Small, with scores that differ between inputs."""
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*body, nn.Linear(8, count), *end)
    model[4].weight.data *= 5
    return model.eval().requires_grad_(False)


RULES = [
    (network(1), "auto", "sigmoid"),
    (network(3), "auto", "softmax"),
    (network(20), "auto", "sigmoid"),
    (network(80), "auto", "sigmoid"),
    (network(3, nn.Softmax(dim=1)), "auto", "outputs"),
    (network(20, nn.Softmax(dim=1)), "auto", "outputs"),
    (network(1000, nn.Softmax(dim=1)), "auto", "outputs"),
    (network(14), "sigmoid", "sigmoid"),
    (network(20), "softmax", "softmax"),
    (network(14, nn.Sigmoid()), "outputs", "outputs"),
    (network(1, nn.Sigmoid()), "outputs", "outputs"),
]
TOLD = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "outputs": "as the model gives it",
}


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    noise = (255 * torch.rand(SIZE, SIZE, 3)).byte().numpy()
    Image.fromarray(noise).save("noise.png")
    preprocess = Preprocess(crop=(SIZE, SIZE), resize=(SIZE,))
    with Image.open("noise.png") as file:
        return preprocess, preprocess(file)[1][None]


def by_rule(outputs, rule):
    """The formulas again, in PyTorch's words."""
    if rule == "outputs":
        return outputs
    return outputs.sigmoid() if rule == "sigmoid" else outputs.softmax(1)


@pytest.mark.parametrize(("model", "option", "rule"), RULES)
@pytest.mark.parametrize("command", ["explain", "channels"])
def test_the_table_and_the_figure(picture, monkeypatch, command, model, option, rule):
    preprocess, inputs = picture
    titles = []
    for module in ("cli.explain", "cli.channels"):
        monkeypatch.setattr(
            f"captum_extremal.{module}.load_model",
            lambda *_: LoadedModel(model, preprocess, None),
        )
    for place in ("cli.explain.plot_result", "cli.channels.plot_channels"):
        monkeypatch.setattr(f"captum_extremal.{place}", _noting(titles))
    arguments = {
        "explain": "explain noise.png --areas 0.3,1 --steps 2",
        "channels": "channels noise.png --layer 1 --areas 2,8 --steps 2",
    }[command]
    done = CliRunner().invoke(main, f"{arguments} --probability {option}")
    assert done.exit_code == 0, done.output
    expected = float(by_rule(model(inputs), rule).max())
    shown = [float(p) for p in re.findall(r" (\d\.\d{3})(?: |$)", done.stdout, re.M)]
    if command == "explain":  # input, 30 %, 100 %, perturbed
        assert len(shown) == 4
        assert shown[0] == shown[2] == pytest.approx(expected, abs=6e-4)
    else:
        assert float(re.search(r"p = (\d\.\d+)", done.stdout)[1]) == pytest.approx(
            expected, abs=6e-4
        )
        assert shown[-1] == pytest.approx(expected, abs=6e-4)
    assert f"\np: {TOLD[rule]}\n" in done.stdout
    assert f"(p = {expected:.2f}, {TOLD[rule]})" in titles[0]


def _noting(titles):
    class Figure:
        def savefig(self, path):
            path.touch()

    def plot(*_args, title):
        titles.append(title)
        return Figure()

    return plot


@pytest.mark.parametrize("command", ["explain", "channels --layer 1"])
def test_scores_that_are_no_probabilities_are_an_error_before_the_search(
    picture, monkeypatch, command
):
    for module in ("cli.explain", "cli.channels"):
        monkeypatch.setattr(
            f"captum_extremal.{module}.load_model",
            lambda *_: LoadedModel(network(3), picture[0], None),
        )
    arguments = f"{command} noise.png --probability outputs"
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("captum-extremal: probability 'outputs' needs outputs in [0")


def test_a_logit_of_chance_in_0_to_1(picture, monkeypatch):
    """The sums of one input are 1; those of the others tell that they are scores."""
    preprocess, inputs = picture
    model = network(2)
    first = model(inputs)[0]
    model[4].bias.data += torch.tensor([0.25, 0.75]) - first
    assert rule_for(model(inputs)) == "outputs"  # one row alone would be taken for it
    monkeypatch.setattr(
        "captum_extremal.cli.explain.load_model",
        lambda *_: LoadedModel(model, preprocess, None),
    )
    done = CliRunner().invoke(
        main, "explain noise.png --areas 0.3 --steps 2 --perturbation fade"
    )
    assert "\np: softmax\n" in done.stdout


def test_compared_methods_take_the_rule(picture, monkeypatch):
    given = []

    def fail(*arguments):
        given.append(arguments[-1].probability)
        raise ValueError("enough")

    monkeypatch.setattr("captum_extremal.cli.explain.compare", fail)
    monkeypatch.setattr(
        "captum_extremal.cli.explain.load_model",
        lambda *_: LoadedModel(network(3), picture[0], None),
    )
    CliRunner().invoke(main, "explain noise.png --compare rise --probability sigmoid")
    assert given == ["sigmoid"]


# --- the benchmark ---


def plan_of(model, rule):
    objects = {"dog": torch.ones(SIZE, SIZE).triu().bool()}
    torch.manual_seed(2)
    noise = Image.fromarray((255 * torch.rand(SIZE, SIZE, 3)).byte().numpy())
    images = ImageSet(
        "voc2007", ["a"], lambda name: Example(name, noise, objects, {"dog": False})
    )
    preprocess = Preprocess(crop=(SIZE, SIZE))
    options = Options(probability=rule)
    return Plan(images, model, preprocess, ("centre",), options=options), noise


@pytest.mark.parametrize(
    ("model", "option", "rule"),
    [
        (network(20), "auto", "sigmoid"),
        (network(20), "sigmoid", "sigmoid"),
        (network(20), "softmax", "softmax"),
        (network(20, nn.Softmax(dim=1)), "auto", "outputs"),
        (network(20, nn.Sigmoid()), "outputs", "outputs"),
        (network(20).double(), "auto", "sigmoid"),
    ],
)
def test_a_row_of_the_benchmark(tmp_path, model, option, rule):
    plan, noise = plan_of(model, option)
    (row,) = run(plan, tmp_path).rows.values()
    expected = by_rule(model(plan.inputs(noise)), rule)[0, row.target]
    assert row.probability == pytest.approx(float(expected), rel=1e-6)


def _only(content):
    (row,) = content.rows.values()
    return row


def test_rows_of_two_rules_are_never_one_run(tmp_path):
    model = network(20)
    plans = {it: plan_of(model, it)[0] for it in ("auto", "sigmoid", "softmax")}
    hashes = {plan.configurations["centre"] for plan in plans.values()}
    assert len(hashes) == 3
    assert "probability" not in plans["auto"].settings["centre"]["common"]
    found = {rule: run(plan, tmp_path) for rule, plan in plans.items()}
    assert all(len(content.rows) == 1 for content in found.values())
    values = {rule: _only(it).probability for rule, it in found.items()}
    assert values["auto"] == values["sigmoid"] != values["softmax"]


def test_a_benchmark_of_scores_that_are_no_probabilities(tmp_path):
    with pytest.raises(ValueError, match="probability 'outputs' needs outputs in"):
        run(plan_of(network(20), "outputs")[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_passes_the_rule_on(tmp_path, monkeypatch):
    given = []

    def plan(*_args, options, **_more):
        given.append(options.probability)
        raise ValueError("enough")

    monkeypatch.setattr("captum_extremal.cli.benchmark.Plan", plan)
    monkeypatch.setattr("captum_extremal.cli.benchmark.open_images", lambda *_: None)
    monkeypatch.setattr(
        "captum_extremal.cli.benchmark.load_model",
        lambda *_: LoadedModel(network(20), Preprocess(), None),
    )
    arguments = (
        f"benchmark --dataset voc2007 --root {tmp_path} --output {tmp_path / 'out'} "
        "--probability softmax"
    )
    CliRunner().invoke(main, arguments)
    assert given == ["softmax"]
