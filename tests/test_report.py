"""The page of a result: all areas and scores are there, and nothing else gets in."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from captum_extremal import ExtremalPerturbation
from captum_extremal.curve import Curve
from captum_extremal.page import embed, notebook_html, svg, to_html
from captum_extremal.results.extremal import ExtremalResult

AREAS = (0.4, 0.1, 0.2)  # not in order, as a caller may ask
ORDERED = ["10\N{NO-BREAK SPACE}%", "20\N{NO-BREAK SPACE}%", "40\N{NO-BREAK SPACE}%"]
EVIL = "<script>alert('x')</script> \"& {{ 7 * 7 }} {% if %}"


def make_result(num_images=1, size=(16, 16), **others):
    values = {
        "masks": torch.rand(num_images, 3, 1, *size),
        "areas": AREAS,
        "scores": torch.tensor([[3.0, 1.0, 2.5]]).repeat(num_images, 1),
        "complement_scores": torch.tensor([[0.25, 2.0, 1.5]]).repeat(num_images, 1),
        "input_score": torch.full((num_images,), 2.25),
        "perturbed_score": torch.full((num_images,), -0.5),
        "settings": {"method": "Extremal Perturbation", "version": "9.8.7", "seed": 3},
    }
    return ExtremalResult(**{**values, **others})


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), and the text inside each tag."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag, name=None):
        return [
            attributes
            for found, attributes in self.elements
            if found == tag and (name is None or name in attributes["class"].split())
        ]

    def images(self, name):
        """The pictures of a class, as numbers in [0, 1]."""
        return [
            pixels(image["src"]) for image in self.all("img", name) if "src" in image
        ]


def pixels(uri):
    kind, _, data = uri.partition(",")
    assert re.fullmatch(r"data:image/(png|jpeg);base64", kind)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) / 255


# --- what is on the page ---


def test_all_areas_stand_on_the_page_in_order():
    page = Page(to_html(make_result(), images=torch.rand(1, 3, 16, 16)))
    items = [item for item in page.all("li") if "data-area" in item]
    assert [item["data-area"] for item in items] == ORDERED
    assert [item["data-kept"] for item in items] == ["1.00", "2.50", "3.00"]
    assert [item["data-removed"] for item in items] == ["2.00", "1.50", "0.25"]
    assert [item["data-note"] for item in items] == ["", "a*: enough", ""]
    assert page.texts["h3"] == [ORDERED[0], f"{ORDERED[1]} (a*)", ORDERED[2]]


def test_the_pictures_are_those_of_the_masks():
    result, images = make_result(), torch.rand(1, 3, 16, 16)
    page = Page(to_html(result, images=images))
    order = [1, 2, 0]
    ghost = 0.25 * images[0].mean(dim=0, keepdim=True)
    for shown, mask in zip(page.images("mask"), result.masks[0, order], strict=True):
        np.testing.assert_allclose(shown, mask[0].numpy(), atol=0.5 / 255 + 1e-6)
    for name, part in (("kept", result.masks), ("removed", 1 - result.masks)):
        expected = part[0, order] * images[0] + (1 - part[0, order]) * ghost
        for shown, one in zip(page.images(name), expected, strict=True):
            one = one.movedim(0, -1).numpy()
            np.testing.assert_allclose(shown, one, atol=0.5 / 255 + 1e-6)
    (whole,) = page.images("whole")
    np.testing.assert_allclose(
        whole, images[0].movedim(0, -1).numpy(), atol=0.5 / 255 + 1e-6
    )


def test_every_picture_says_what_it_shows():
    page = Page(to_html(make_result(), images=torch.rand(1, 1, 16, 16), label="cat"))
    alts = [image["alt"] for image in page.all("img") if "src" in image]
    assert f"What the mask of {ORDERED[1]} keeps: cat scores 2.50" in alts
    assert f"The picture without these {ORDERED[1]}: cat scores 1.50" in alts
    assert f"The mask of {ORDERED[1]}, white is kept" in alts
    assert all(alts)


def test_the_slider_starts_at_a_star_and_has_a_label():
    page = Page(to_html(make_result(), images=torch.rand(1, 3, 16, 16)))
    (slider,) = page.all("input")
    assert (slider["type"], slider["max"], slider["value"]) == ("range", "2", "1")
    assert [label["for"] for label in page.all("label")] == [slider["id"]]


def test_the_summary_is_that_of_the_result():
    page = to_html(make_result(), label="cat")
    assert (
        f"{ORDERED[1]} of the picture is enough (a*): alone it scores 2.50 for cat, "
        "the whole picture 2.25." in page
    )
    never = to_html(make_result(input_score=torch.tensor([9.0])), label="cat")
    assert "None of these areas is enough: the whole picture scores 9.00" in never
    assert "a*: enough" not in never
    assert 'value="2"' in never


def test_settings_and_versions_are_listed():
    page = Page(to_html(make_result()))
    rows = dict(zip(page.texts["th"], page.texts["td"], strict=True))
    assert rows["seed"] == "3"
    assert rows["found by version"] == "9.8.7"
    assert f"torch {torch.__version__.partition('+')[0]}" in rows["page made by"]


def test_an_image_of_the_batch_is_shown_as_if_alone():
    result = make_result(
        2,
        scores=torch.tensor([[3.0, 1.0, 2.5], [7.0, 5.0, 6.0]]),
        complement_scores=torch.tensor([[0.25, 2.0, 1.5], [1.0, 0.0, 2.0]]),
        input_score=torch.tensor([2.25, 5.5]),
        perturbed_score=torch.tensor([-0.5, -1.5]),
    )
    images, maps = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 4, 4)
    names = ("masks", "scores", "complement_scores", "input_score", "perturbed_score")
    alone = dataclasses.replace(
        result, **{name: getattr(result, name)[1:] for name in names}
    )
    page = to_html(result, images=images, index=1, others={"map": maps})
    note = '<p class="quiet">Image 1 of 0..1 of the result.</p>\n'
    assert note in page
    expected = to_html(alone, images=images[1:], others={"map": maps[1:]})
    assert page.replace(note, "") == expected
    assert to_html(result, images=images, others={"map": maps}) != page


def test_normalised_images_are_shown_as_they_were():
    images = torch.rand(1, 3, 16, 16)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]
    shape = (1, 3, 1, 1)
    normalised = (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(
        shape
    )
    result = make_result()
    shown = Page(to_html(result, images=normalised, mean=mean, std=std)).images("whole")
    np.testing.assert_allclose(
        shown[0], images[0].movedim(0, -1).numpy(), atol=0.5 / 255 + 1e-5
    )


def test_other_methods_stand_beside_the_mean_of_the_masks():
    maps = {"IG": torch.zeros(1, 3, 16, 16), EVIL: torch.rand(1, 1, 4, 4)}
    maps["IG"][0, :, 2, 5] = 1.0
    images = torch.full((1, 3, 16, 16), 0.5)
    page = Page(to_html(make_result(), images=images, others=maps))
    assert len(page.images("other")) == 3
    changed = np.abs(page.images("other")[1] - 0.5).max(axis=-1) > 0.01
    assert np.argwhere(changed).tolist() == [[2, 5]]
    captions = page.texts["figcaption"]
    assert captions[-3:] == ["mean of the masks", "IG", EVIL]


def test_a_signed_map_is_red_above_0_and_blue_below():
    values = torch.zeros(1, 3, 16, 16)
    values[0, :, 2, 5], values[0, :, 9, 9] = 1.0, -1.0
    images = torch.full((1, 3, 16, 16), 0.5)
    result = make_result()
    text = to_html(result, images=images, others={"IG": values})
    mean, shown = Page(text).images("other")
    red, blue = (to_rgb(colour) for colour in ("#C1272D", "#0072B2"))
    np.testing.assert_allclose(shown[2, 5], red, atol=0.003)
    np.testing.assert_allclose(shown[9, 9], blue, atol=0.003)
    np.testing.assert_allclose(shown[0, 0], 0.875, atol=0.003)  # three quarters white
    assert "red is above 0" in text
    unsigned = to_html(result, images=images, others={"IG": values.abs()})
    assert "red is above 0" not in unsigned
    np.testing.assert_allclose(Page(unsigned).images("other")[0], mean)


def test_a_single_large_value_does_not_hide_a_map():
    values = torch.ones(1, 1, 16, 16)
    values[..., 0, 0] = 4.0
    images = torch.zeros(1, 3, 16, 16)
    page = Page(to_html(make_result(), images=images, others={"IG": values}))
    shown = page.images("other")[1].max(axis=-1)
    assert shown[8, 8] == shown[0, 0]


# --- it is one file, safe and small ---


def test_nothing_is_fetched_from_anywhere():
    source = to_html(make_result(), images=torch.rand(1, 3, 16, 16))
    assert not re.search(r"https?:|@import|url\(|fetch\(", source)
    for tag, attributes in Page(source).elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    assert "default-src 'none'; img-src data:;" in source


def test_texts_from_outside_are_only_text():
    result = make_result(settings={EVIL: EVIL})
    harmless = Page(to_html(make_result(settings={"a": "b"})))
    source = to_html(result, title=EVIL, label=EVIL)
    page = Page(source)
    assert page.texts["h1"] == page.texts["title"] == [EVIL]
    assert page.texts["th"][0] == page.texts["td"][0] == EVIL
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]


def test_the_policy_names_the_pages_own_script_and_style():
    source = to_html(make_result())
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", source, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in source


def test_the_same_result_gives_the_same_page():
    result, images = make_result(), torch.rand(1, 3, 16, 16)
    assert to_html(result, images=images) == to_html(result, images=images)


def test_a_page_of_eight_areas_is_below_two_megabytes():
    noise = torch.rand(1, 3, 224, 224)  # nothing compresses worse
    masks = torch.nn.functional.interpolate(
        torch.rand(8, 1, 20, 20), (224, 224), mode="bicubic"
    ).clamp(0, 1)
    result = make_result(
        masks=masks[None],
        areas=tuple((torch.arange(8) + 1).div(10).tolist()),
        scores=torch.rand(1, 8),
        complement_scores=torch.rand(1, 8),
    )
    assert len(to_html(result, images=noise)) < 2_000_000


def test_a_large_picture_is_made_smaller():
    assert embed.fitted(torch.rand(3, 1300, 650)).shape == (3, 640, 320)
    picture = torch.zeros(1, 1280, 640)
    picture[:, ::2] = 1.0
    torch.testing.assert_close(embed.fitted(picture), torch.full((1, 640, 320), 0.5))


def test_the_outline_is_drawn_where_there_is_room():
    mask = torch.zeros(1, 120, 120)
    mask[:, 30:60, 40:80] = 1.0
    kept, removed = embed.kept_and_removed(torch.full((3, 120, 120), 0.8), mask)
    assert kept[0, 30, 40] == kept[0, 59, 79] == removed[0, 30, 40] == 1.0
    assert kept[0, 45, 60] == pytest.approx(0.8)
    assert kept[0, 29, 40] == pytest.approx(0.2)


# --- the file ---


def test_the_page_is_written_as_it_is_returned(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    page = make_result().to_html(path, torch.rand(1, 3, 16, 16), title="Ünïcode")
    assert path.read_text("utf-8") == page
    assert "<h1>Ünïcode</h1>" in page
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_the_method_passes_everything_on():
    result, images = make_result(2), torch.rand(2, 1, 16, 16)
    options = {
        "index": 1,
        "mean": [0.1],
        "std": [2.0],
        "title": "t",
        "label": "l",
        "others": {"o": torch.rand(2, 1, 4, 4)},
    }
    given = result.to_html(None, images, **options)
    assert given == to_html(result, None, images, **options)
    for name in options:
        if name not in ("mean", "std"):
            rest = {key: value for key, value in options.items() if key != name}
            assert given != to_html(result, None, images, **rest), name


# --- the drawing ---


def test_the_dots_stand_at_their_areas_and_scores():
    scores = Curve([0.1, 0.2, 0.4], [1.0, 2.5, 3.0], [2.0, 1.5, 0.25], 2.25, -0.5, 1)
    drawing = Page(svg.draw(scores, "scores"))
    kept, removed = drawing.all("circle", "kept"), drawing.all("rect", "removed")
    xs = [float(dot["cx"]) for dot in kept]
    assert xs == [svg.place_x(scores, place) for place in range(3)]
    assert (xs[2] - xs[1]) == pytest.approx(2 * (xs[1] - xs[0]), abs=0.4)
    ys = [float(dot["cy"]) for dot in kept]
    ys += [float(dot["y"]) + 4 for dot in removed]
    ys += [float(line["y1"]) for line in drawing.all("line", "level")]
    values = [*scores.scores, *scores.complement_scores, 2.25, -0.5]
    slope = (ys[0] - ys[1]) / (values[0] - values[1])
    assert slope < 0  # up is more
    for value, y in zip(values, ys, strict=True):
        assert y == pytest.approx(ys[0] + slope * (value - values[0]), abs=0.3)
    (mark,) = drawing.all("line", "a-star")
    assert float(mark["x1"]) == xs[1]


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [5.0, 5.0], [-2.0, -2.0], [1e-9, 3e-9], [-1e9, 1e9]]
)
def test_any_scores_can_be_drawn(values):
    scores = Curve([0.1, 1.0], values, values, values[0], values[1], None)
    drawing = Page(svg.draw(scores, "scores"))
    heights = [float(dot["cy"]) for dot in drawing.all("circle", "kept")]
    assert len(heights) == 2
    assert all(0 < height < svg.HEIGHT for height in heights)


def test_scores_that_are_no_numbers_are_left_out():
    nan = float("nan")
    scores = Curve([0.1, 0.2], [nan, 1.0], [nan, nan], nan, 0.0, None)
    source = svg.draw(scores, "scores")
    (dot,) = Page(source).all("circle", "kept")
    assert dot["data-place"] == "1"
    assert "nan" not in source


# --- without pictures ---


def test_a_result_alone_shows_its_masks():
    page = Page(to_html(make_result()))
    assert len(page.images("mask")) == 3
    assert page.images("kept") == page.images("whole") == []
    assert any("does not hold its images" in text for text in page.texts["p"])


@pytest.mark.parametrize(
    "masks",
    [
        torch.rand(1, 3, 1, 9),
        torch.rand(1, 3, 1, 4, 4, 4),
        (torch.rand(1, 3, 1, 8, 8),),
    ],
    ids=["signal", "volume", "tuple"],
)
def test_masks_that_are_no_pictures_leave_the_scores(masks):
    page = Page(to_html(make_result(masks=masks)))
    assert [image for image in page.all("img") if "src" in image] == []
    assert len(page.all("circle", "kept")) == 3
    assert any("of the input is enough" in text for text in page.texts["p"])


def test_a_notebook_shows_the_page_in_a_frame():
    result = make_result(2)
    (frame,) = Page(result._repr_html_()).all("iframe")
    assert frame["srcdoc"] == to_html(result)
    assert frame["sandbox"] == "allow-scripts"


def test_a_result_without_images_is_shown_as_text():
    empty = make_result(
        masks=torch.zeros(0, 3, 1, 4, 4),
        scores=torch.zeros(0, 3),
        complement_scores=torch.zeros(0, 3),
        input_score=torch.zeros(0),
        perturbed_score=torch.zeros(0),
    )
    assert notebook_html(empty) is None


def test_a_result_of_a_run():
    method = ExtremalPerturbation(lambda x: x[:, 0, :8].mean((1, 2)), "fade")
    x = torch.rand(1, 1, 16, 16)
    result = method.optimize(x, areas=[0.1, 0.5])
    page = Page(result.to_html(images=x))
    kept = [float(li["data-kept"]) for li in page.all("li") if "data-kept" in li]
    assert kept == pytest.approx(result.scores[0].tolist(), abs=0.01)


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": 1}, r"index must lie in 0\.\.0, got 1"),
        ({"index": -1}, r"index must lie in 0\.\.0, got -1"),
        ({"images": torch.rand(3, 16, 16)},
         r"images must be of shape \(1, 1 or 3, 16, 16\), .*got \(3, 16, 16\)"),
        ({"images": torch.rand(1, 3, 8, 16)}, r"images must be of shape .*8, 16\)"),
        ({"images": torch.rand(2, 3, 16, 16)}, r"images must be of shape .*\(2, 3"),
        ({"images": torch.rand(1, 2, 16, 16)}, r"images must be of shape .*\(1, 2"),
        ({"images": 2 * torch.ones(1, 3, 16, 16)},
         r"images must lie in \[0, 1\] unless mean and std are given, got 2\.\.2"),
        ({"images": torch.full((1, 3, 16, 16), torch.nan)},
         r"images must lie in \[0, 1\]"),
        ({"images": torch.rand(1, 3, 16, 16), "mean": [0.5]},
         "mean and std must be given together, got no std"),
        ({"images": torch.rand(1, 3, 16, 16), "mean": [0.5] * 3, "std": [1.0] * 2},
         "std must hold one value, or one for each of 3 channels, got 2"),
        ({"others": {"IG": torch.rand(1, 1, 16, 16)}},
         "others must come with images to be shown on, got none"),
        ({"images": torch.rand(1, 3, 16, 16), "others": {"IG": torch.rand(16, 16)}},
         r"others\['IG'\] must be of shape \(1, C, H, W\), got \(16, 16\)"),
        (
            {
                "images": torch.rand(1, 3, 16, 16),
                "others": {"IG": torch.full((1, 1, 4, 4), torch.nan)},
            },
            r"others\['IG'\] must be finite, got NaN or infinity",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_result().to_html(tmp_path / "page.html", **options)
    assert list(tmp_path.iterdir()) == []


def test_images_with_a_tuple_of_masks():
    result = make_result(masks=(torch.rand(1, 3, 1, 16, 16),))
    with pytest.raises(TypeError, match="result must hold one tensor of masks"):
        to_html(result, images=torch.rand(1, 3, 16, 16))


def test_others_without_names():
    with pytest.raises(TypeError, match=r"others must be a dict .*, got Tensor"):
        to_html(make_result(), others=torch.rand(1, 3, 16, 16))


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must lie in an existing folder"):
        make_result().to_html(tmp_path / "none" / "page.html")


def test_a_result_without_pictures_takes_no_images():
    result = ExtremalResult(
        torch.rand(1, 1, 1, 100), (0.5,), *torch.zeros(2, 1, 1), *torch.zeros(2, 1)
    )
    with pytest.raises(ValueError, match="images must be None for masks"):
        result.to_html(images=torch.rand(1, 1, 100))


def test_a_score_that_is_no_number_is_called_that():
    result = ExtremalResult(
        torch.rand(1, 1, 1, 8, 8), (0.5,), *torch.zeros(2, 1, 1),
        torch.tensor([torch.nan]), torch.zeros(1),
    )  # fmt: skip
    page = result.to_html()
    assert "no score that is a number" in page
    assert "None of these areas is enough" not in page
