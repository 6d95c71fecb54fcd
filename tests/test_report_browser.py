"""The page of a result in a real browser: the slider, the colours, the silence."""

from __future__ import annotations

import base64
import io
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from captum_extremal.results.extremal import ExtremalResult

WIDE, PHONE = 1200, 360
NBSP = "\N{NO-BREAK SPACE}"
LABEL = "a_target_of_a_very_long_name_" * 4  # nothing may push the page wider


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with all of its parts."""
    torch.manual_seed(0)
    result = ExtremalResult(
        masks=torch.rand(1, 4, 1, 120, 120),
        areas=(0.1, 0.2, 0.4, 0.8),
        scores=torch.tensor([[1.0, 2.5, 3.0, 4.0]]),
        complement_scores=torch.tensor([[2.0, 1.5, 0.25, 0.5]]),
        input_score=torch.tensor([2.25]),
        perturbed_score=torch.tensor([-0.5]),
        settings={"solver": "Solver(" + "x" * 300 + ")", "word": "y" * 300},
    )
    path = tmp_path_factory.mktemp("page") / "page.html"
    images = torch.rand(1, 3, 120, 120)
    others = {"IG": torch.randn(1, 3, 120, 120), "z" * 80: torch.rand(1, 1, 7, 7)}
    result.to_html(path, images, title="t" * 90, label=LABEL, others=others)
    return path.as_uri()


@pytest.fixture
def visit(browser, page):
    """Open the page at a width, in light or dark colours, with scripts or without."""

    def open_page(width=WIDE, scheme="light", scripts=True, address=page):
        command = browser.execute_cdp_cmd
        command("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        command(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": 800,
                "deviceScaleFactor": 1,
                "mobile": width < WIDE,
            },
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        command("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(address)
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def find(driver, selector):
    return driver.find_element("css selector", selector)


def state(driver):
    """What the viewer shows."""
    kept = find(driver, "#viewer img.kept")
    return {
        "area": find(driver, "#viewer [data-show=area]").text,
        "note": find(driver, "#viewer [data-show=note]").text,
        "kept": find(driver, "#viewer [data-show=kept]").text,
        "removed": find(driver, "#viewer [data-show=removed]").text,
        "spoken": find(driver, "#area").get_attribute("aria-valuetext"),
        "alt": kept.get_attribute("alt"),
        "src": kept.get_attribute("src"),
        "mask": find(driver, "#viewer img.mask").get_attribute("src"),
        "cursor": find(driver, "#curve .cursor").rect["x"],
        "dot": find(driver, "#curve .dot.kept.current").rect,
    }


def press(driver, key):
    from selenium.webdriver.common.keys import Keys

    find(driver, "#area").send_keys(getattr(Keys, key))


def test_the_keyboard_moves_the_slider_and_everything_follows(visit):
    driver = visit()
    at_a_star = state(driver)
    press(driver, "ARROW_RIGHT")
    after = state(driver)
    assert (at_a_star["area"], at_a_star["note"]) == ("20 %", "a*: enough")
    assert (at_a_star["kept"], at_a_star["removed"]) == ("2.50", "1.50")
    assert (after["area"], after["note"]) == ("40 %", "")
    assert (after["kept"], after["removed"]) == ("3.00", "0.25")
    assert after["spoken"] == f"40{NBSP}%, kept alone 3.00, removed 0.25"
    assert after["alt"] == f"What the mask of 40{NBSP}% keeps: {LABEL} scores 3.00"
    for name in ("src", "mask", "alt"):
        assert after[name] != at_a_star[name], name
    press(driver, "HOME")
    assert state(driver)["kept"] == "1.00"
    press(driver, "END")
    assert state(driver)["kept"] == "4.00"


def test_the_cursor_stands_at_the_current_dot(visit):
    driver = visit()
    places = []
    press(driver, "HOME")
    for _ in range(4):
        now = state(driver)
        middle = now["dot"]["x"] + now["dot"]["width"] / 2
        assert now["cursor"] == pytest.approx(middle, abs=2)
        places.append(now["cursor"])
        press(driver, "ARROW_RIGHT")
    gaps = np.diff(places)
    assert gaps[1] == pytest.approx(2 * gaps[0], rel=0.1)
    assert gaps[2] == pytest.approx(4 * gaps[0], rel=0.1)


def test_every_picture_is_painted_and_has_a_text(visit):
    driver = visit()
    sizes = driver.execute_script(
        "return [...document.images].map((i) => [i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert len(sizes) == 4 + 4 * 3 + 3
    for natural, shown, alt in sizes:
        assert natural == 120
        assert shown > 40
        assert alt


def test_nothing_leaves_the_page_and_the_console_is_silent(visit, browser, page):
    for log in ("performance", "browser"):
        browser.get_log(log)  # of the tests before
    driver = visit()
    for key in ("HOME", "END"):
        press(driver, key)
    messages = [json.loads(entry["message"]) for entry in driver.get_log("performance")]
    requests = {
        message["message"]["params"]["request"]["url"]
        for message in messages
        if message["message"]["method"] == "Network.requestWillBeSent"
    }
    assert page in requests
    assert {url for url in requests if not url.startswith("data:")} == {page}
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [PHONE, WIDE])
def test_the_page_is_never_wider_than_the_screen(visit, width, scripts):
    driver = visit(width, scripts=scripts)
    # Without scripts the driver cannot tell when the page has its layout.
    deadline = time.monotonic() + 20
    while page_width(driver) != width and time.monotonic() < deadline:
        time.sleep(0.1)
    assert page_width(driver) == width


def page_width(driver):
    metrics = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})
    return metrics["cssContentSize"]["width"]


def screenshot(driver):
    png = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    return np.asarray(picture)


def test_dark_mode_has_other_colours(visit):
    paper = [screenshot(visit(scheme=s))[2, 2].mean() for s in ("light", "dark")]
    assert paper[0] > 250
    assert paper[1] < 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_background(visit, scheme):
    """The contrast that WCAG 2 asks of small letters, 4.5."""
    driver = visit(scheme=scheme)
    colours = driver.execute_script(
        "const of = (s, p) => getComputedStyle(document.querySelector(s))[p];"
        "return [['body', 'body'], ['footer', 'body'], ['.areas .kept .score', 'body'],"
        "['.areas .removed .score', 'body'], ['.whole .score', '#viewer'],"
        "['#viewer .kept .score', '#viewer'], ['#viewer .removed .score', '#viewer'],"
        "['[data-show=note]', '[data-show=note]']]"
        ".map(([a, b]) => [of(a, 'color'), of(b, 'backgroundColor')])"
    )
    for ink, paper in colours:
        one, two = sorted((luminance(ink), luminance(paper)))
        assert (two + 0.05) / (one + 0.05) >= 4.5, (ink, paper)


def luminance(colour):
    channels = np.array([float(c) for c in colour.strip("rgb()").split(",")]) / 255
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def test_without_scripts_all_areas_stand_there(visit):
    driver = visit(scripts=False)
    assert not find(driver, "#viewer").is_displayed()
    items = driver.find_elements("css selector", "#areas > li")
    assert [item.text.splitlines()[0] for item in items] == [
        "10 %",
        "20 % (a*)",
        "40 %",
        "80 %",
    ]
    for item in items:
        for image in item.find_elements("css selector", "img"):
            assert image.rect["width"] > 40
    assert not find(driver, "#curve .cursor").is_displayed()


def test_the_frame_of_a_notebook_works(visit, tmp_path):
    result = ExtremalResult(
        masks=torch.rand(1, 2, 1, 16, 16),
        areas=(0.1, 0.2),
        scores=torch.tensor([[1.0, 2.0]]),
        complement_scores=torch.tensor([[2.0, 1.0]]),
        input_score=torch.tensor([1.5]),
        perturbed_score=torch.tensor([0.0]),
    )
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><body>{result._repr_html_()}", "utf-8")
    driver = visit(address=path.as_uri())
    driver.switch_to.frame(find(driver, "iframe"))
    shown = [find(driver, "#viewer [data-show=kept]").text]
    press(driver, "ARROW_LEFT")
    shown.append(find(driver, "#viewer [data-show=kept]").text)
    driver.switch_to.default_content()
    assert shown == ["2.00", "1.00"]
    assert driver.get_log("browser") == []


@pytest.mark.parametrize(
    "masks", [torch.ones(1, 1, 1, 5, 5), torch.ones(1, 1, 1, 9)], ids=["one", "signal"]
)
def test_a_single_area(visit, tmp_path, masks):
    result = ExtremalResult(
        masks=masks,
        areas=(1.0,),
        scores=torch.tensor([[1.5]]),
        complement_scores=torch.tensor([[0.0]]),
        input_score=torch.tensor([1.5]),
        perturbed_score=torch.tensor([0.0]),
    )
    path = tmp_path / "single.html"
    result.to_html(path)
    driver = visit(PHONE, address=path.as_uri())
    press(driver, "ARROW_RIGHT")
    assert find(driver, "#viewer [data-show=kept]").text == "1.50"
    assert find(driver, "#curve .dot.kept.current").rect["x"] < PHONE
    assert page_width(driver) == PHONE
    assert driver.get_log("browser") == []
