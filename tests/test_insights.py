"""Captum Insights: its tables, its own calculation, and its page in a real browser.

What needs Insights runs in `make test-captum08`, since Captum 0.9 has none. The page is
served by the script of docs/insights.md. To make the picture there anew:

    INSIGHTS_PNG=docs/images/insights.png make test-captum08
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_extremal import ExtremalPerturbation, LevelSetSolver, insights
from tiny_models import ConvNet

NAME = "Extremal Perturbation"
CONFIG = "captum.insights.attr_vis.config"
INSTALL = "pip install 'captum<0.9' flask flask-compress"
PAGE = Path(__file__).parent.parent / "docs" / "insights.md"
SECONDS = 60  # for what takes a few at most on an idle machine


def need_insights():
    reason = "Captum 0.8 and flask are not installed: make test-captum08"
    return pytest.importorskip(CONFIG, reason=reason)


# --- where there is no Insights ---


def has_insights():
    return importlib.util.find_spec("captum.insights") is not None


def forget_insights(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("captum.insights")]:
        monkeypatch.delitem(sys.modules, name)


def test_without_insights_the_error_says_what_to_do(monkeypatch):
    if has_insights():
        forget_insights(monkeypatch)
        monkeypatch.setitem(sys.modules, "captum.insights", None)
    with pytest.raises(ImportError) as caught:
        insights.register()
    assert str(caught.value) == (
        "Captum removed Insights in 0.9. Use ExtremalResult.to_html for a page of a "
        f"result, or captum 0.8: {INSTALL}"
    )


@pytest.mark.parametrize("package", ["flask", "flask_compress"])
def test_without_flask_the_error_names_it(monkeypatch, package):
    need_insights()
    forget_insights(monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        insights.register()
    assert str(caught.value) == (
        f"Captum Insights needs {package}, which is not installed: {INSTALL}"
    )


def test_the_import_loads_neither_insights_nor_flask():
    need_insights()
    probe = "import sys, captum_extremal.insights; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "captum_extremal.insights" in loaded
    assert not {"flask", "captum.insights"} & loaded


# --- texts and numbers of the page ---


@pytest.mark.parametrize(
    ("text", "areas"),
    [
        ("0.05, 0.1, 0.2", (0.05, 0.1, 0.2)),
        ("0.05 0.1", (0.05, 0.1)),
        (" 1,", (1.0,)),
        ((0.3, 0.4), (0.3, 0.4)),
    ],
)
def test_areas_are_read(text, areas):
    assert insights._areas(text) == areas


@pytest.mark.parametrize("text", ["", ",", "5", "0.1, 0", "-0.1", "nan", "5 %", "a"])
def test_wrong_areas_are_named(text):
    expected = (
        r"areas must be numbers in \(0, 1\], separated by commas, such as "
        rf"'0.05, 0.1, 0.2', got {text!r}"
    )
    with pytest.raises(ValueError, match=f"^{expected}$"):
        insights._areas(text)


def test_wrong_steps_are_named():
    with pytest.raises(ValueError, match=r"^steps must be at least 1, got 0$"):
        insights._steps(0)
    with pytest.raises(TypeError, match=r"^steps must be an int"):  # an empty field
        insights._steps(None)


# --- Insights' own objects ---


@pytest.fixture
def config():
    """Captum's tables, as they were afterwards."""
    config = need_insights()
    tables = (config.ATTRIBUTION_NAMES_TO_METHODS, config.ATTRIBUTION_METHOD_CONFIG)
    before = [dict(table) for table in tables]
    yield config
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture
def visualizer(config):
    from captum.insights import AttributionVisualizer, Batch
    from captum.insights.attr_vis.features import ImageFeature

    feature = ImageFeature("Photo", [torch.zeros_like], [])
    batch = Batch(torch.rand(4, 3, 12, 12), torch.tensor([0, 1, 2, 0]))
    classes = ["a", "b", "c"]
    model = ConvNet(channels=3).eval()
    return AttributionVisualizer([model], classes, [feature], [batch])


def page_arguments(visualizer):
    """What the page sends if nothing is changed on it."""
    fields = visualizer.get_insights_config()["method_arguments"][NAME]
    return {name: field["value"] for name, field in fields.items()}


def test_the_method_is_offered_once_also_by_visualizers_made_before(visualizer):
    others = visualizer.get_insights_config()["methods"]
    assert NAME not in others
    insights.register()
    once = json.dumps(visualizer.get_insights_config())
    insights.register()
    assert json.dumps(visualizer.get_insights_config()) == once
    assert visualizer.get_insights_config()["methods"] == [*others, NAME]


def test_the_fields_offer_what_is_legal(visualizer):
    insights.register()
    fields = visualizer.get_insights_config()["method_arguments"][NAME]
    assert fields["perturbation"]["limit"] == ["blur", "fade"]
    assert fields["game"]["limit"] == ["preservation", "deletion", "hybrid"]
    assert fields["steps"]["limit"] == (1, None)
    assert fields["areas"]["type"] == "string"


def attribute(visualizer, target=1, **changes):
    """As Insights does it, and as a user of the library would do it."""
    calculation = visualizer.attribution_calculation
    (model,) = visualizer.models
    inputs = visualizer.dataset[0].inputs[:1]
    arguments = {**page_arguments(visualizer), **changes}
    (found,) = calculation.calculate_attribution(
        None, (inputs,), None, torch.tensor(target), NAME, arguments, model
    )
    return found, model, inputs


def test_the_defaults_are_those_of_the_method(visualizer):
    insights.register()
    found, model, inputs = attribute(visualizer)
    expected = ExtremalPerturbation(model).attribute(inputs, target=1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"areas": "0.3"},
        {"steps": 9},
        {"perturbation": "fade"},
        {"game": "hybrid"},
        {"target": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_argument_reaches_the_method(visualizer, change):
    insights.register()
    base = {"areas": "0.1, 0.2", "steps": 5, "game": "deletion", "target": 1}
    values = {**base, "perturbation": "blur", **change}
    before, model, inputs = attribute(visualizer, **base)
    found, model, inputs = attribute(visualizer, **values)
    method = ExtremalPerturbation(
        model, values["perturbation"], LevelSetSolver(values["steps"])
    )
    areas = [float(area) for area in values["areas"].split(",")]
    expected = method.attribute(
        inputs, values["target"], areas=areas, game=values["game"]
    )
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


@pytest.mark.filterwarnings("ignore:It looks like that the attribution")  # Captum's
def test_a_fetch_explains_every_picture_and_a_click_another_label(visualizer):
    """One dictionary of arguments serves all pictures and the clicks after them."""
    insights.register()
    arguments = {**page_arguments(visualizer), "areas": "0.2", "steps": 3}
    visualizer._update_config(
        {
            "attribution_method": NAME,
            "arguments": arguments,
            "prediction": "all",
            "classes": [],
        }
    )
    outputs = [output for (output,) in visualizer.visualize()]
    assert [output.actual.label for output in outputs] == ["a", "b", "c", "a"]
    shown = [output.feature_outputs[0].modified for output in outputs]
    assert len(set(shown)) > 1
    other = outputs[0].predicted[1].index.item()
    clicked = visualizer._calculate_attribution_from_cache(0, 0, other)
    assert clicked.active_index == other
    assert clicked.feature_outputs[0].modified != shown[0]


# --- the page in a browser ---


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of the page of docs/insights.md, and the file of the terminal's text."""
    need_insights()
    pytest.importorskip("skimage", reason="scikit-image is not installed: its pictures")
    script = re.search("```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[1]
    terminal = tmp_path_factory.mktemp("insights") / "stderr"
    with terminal.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-u", "-c", script],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with server, server.stdout:
        try:
            lines = map(re.compile(r"http://localhost:\d+/").search, server.stdout)
            found = next(filter(None, lines), None)
            assert found, terminal.read_text()
            until(lambda: answers(found[0]))
            yield found[0], terminal
        finally:
            server.kill()


def until(condition):
    """Wait for it, and return what it gave."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, f"{SECONDS} seconds in vain"
        time.sleep(0.05)
    return value


def answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(address):
        return True
    return False


@pytest.fixture
def page(served, browser):
    """The page, with the method chosen."""
    from selenium.webdriver.support.ui import Select

    browser.get(served[0])
    browser.get_log("browser")  # of the page before
    methods = Select(find(browser, "select[name=selected_method]"))
    until(lambda: methods.options)
    methods.select_by_visible_text(NAME)
    until(lambda: browser.find_elements("css selector", "input[name=areas]"))
    return browser


def find(driver, selector):
    return driver.find_element("css selector", selector)


def set_field(driver, name, text):
    from selenium.webdriver.common.keys import Keys

    field = find(driver, f"input[name={name}]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)
    assert field.get_attribute("value") == text


def press_fetch(driver):
    find(driver, "form button[class*=btn--large]").click()


def fetch(driver):
    """Press the button and wait for the pictures; those of the attributions."""
    press_fetch(driver)
    return until(lambda: attributions(driver))


def attributions(driver):
    """The pictures' sources once all are painted, none before."""
    return driver.execute_script(
        "const images = [...document.querySelectorAll('img[alt=attribution]')];"
        "return images.every((i) => i.complete && i.naturalWidth > 100)"
        " ? images.map((i) => i.src) : []"
    )


def num_dark(source):
    """Pixels in the upper half of Matplotlib's scale "Blues", which Insights takes."""
    png = base64.b64decode(source.partition(",")[2])
    red, _, blue = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).T
    return int(((red < 107) & (blue > 80)).sum())


def console(driver):
    """What it says, but for the missing icon of the tab."""
    messages = [entry["message"] for entry in driver.get_log("browser")]
    return [message for message in messages if "favicon.ico" not in message]


def test_the_page_shows_masks_of_the_asked_areas(page):
    for name, value in (
        ("areas", "0.05, 0.1, 0.2"),
        ("steps", str(LevelSetSolver.iterations)),
    ):
        assert find(page, f"input[name={name}]").get_attribute("value") == value
    if picture := os.environ.get("INSIGHTS_PNG"):
        fetch(page)
        save_picture(page, picture)
    set_field(page, "steps", "9")
    dark = {}
    for area in ("0.1", "0.4"):
        set_field(page, "areas", area)
        sources = fetch(page)
        assert len(set(sources)) == 4  # of four pictures
        dark[area] = np.mean([num_dark(source) for source in sources])
    assert dark["0.4"] / dark["0.1"] == pytest.approx(4, rel=0.2)
    assert console(page) == []


def save_picture(driver, path):
    """The head of the page and the first pictures, in few colours."""
    driver.set_window_size(1250, 900)
    png = io.BytesIO(driver.get_screenshot_as_png())
    Image.open(png).convert("RGB").quantize(128).save(path, optimize=True)


def test_a_click_on_another_label_explains_that(page):
    set_field(page, "areas", "0.2")
    set_field(page, "steps", "9")
    before = fetch(page)
    find(page, "[class*=visualization-container] button[class*=btn--outline]").click()
    after = until(lambda: changed(attributions(page), before))
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    assert console(page) == []


def changed(now, before):
    return now if now != before else None


def test_a_wrong_area_is_told_in_the_terminal(page, served):
    _, terminal = served
    set_field(page, "areas", "5")
    press_fetch(page)
    message = "ValueError: areas must be numbers in (0, 1], separated by commas"
    until(lambda: message in terminal.read_text())
    until(lambda: console(page))  # the answer is an error
    assert attributions(page) == []
