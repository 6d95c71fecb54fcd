"""Records of data sets as other tools write them: one bad object loses no other."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captum_extremal.benchmark import open_images
from captum_extremal.benchmark.annotations import coco_object
from tiny_data import (
    SIZE,
    make_coco_record,
    make_voc,
    make_voc_record,
    voc_object,
)

HEIGHT, WIDTH = SIZE


def box(top, bottom, left, right):
    """Rows and columns from 0, the ends not included."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def read_one(name, root):
    images = open_images(name, root)
    assert len(images.images) == 1
    return images.read(images.images[0])


def reasons(example):
    return [flaw.reason for flaw in example.flaws]


# --- VOC ---

CAT, CAT_MASK = voc_object("cat", "21 5 30 20"), box(4, 20, 20, 30)
DOG_MASK = box(0, 4, 0, 2)


@pytest.mark.parametrize(
    ("flag", "plays", "reason"),
    [
        ("", True, None),
        ("<difficult/>", True, None),
        ("<difficult> </difficult>", True, None),
        ("<difficult>0</difficult>", True, None),
        ("<difficult>0.0</difficult>", True, None),
        ("<difficult>False</difficult>", True, None),
        ("<difficult>1</difficult>", False, None),
        ("<difficult> 1\n</difficult>", False, None),
        ("<difficult>True</difficult>", False, None),
        ("<difficult>TRUE</difficult>", False, None),
        ("<difficult>yes</difficult>", False, None),
        ("<difficult>0</difficult><difficult>1</difficult>", False, None),
        ("<difficult>Unspecified</difficult>", True, "neither 0 nor 1"),
        ("<difficult>nan</difficult>", True, "neither 0 nor 1"),
        ("<difficult>2</difficult>", True, "neither 0 nor 1"),
    ],
)
def test_vocs_flag_is_read_in_all_its_spellings(tmp_path, flag, plays, reason):
    dog = voc_object("dog", "1 1 2 4", flag)
    found = read_one("voc2007", make_voc_record(tmp_path, CAT, dog))
    assert list(found.objects) == (["cat", "dog"] if plays else ["cat"])
    assert found.difficult["cat"] is True  # the dog is in the image in any case
    assert len(found.flaws) == (reason is not None)
    assert all(reason in flaw.reason for flaw in found.flaws)


NAMED = "<object><name>dog</name>{}</object>"
VOC_BAD = [
    (voc_object("dog", "50 30 11 6"), "dog", "ends before it begins"),
    (voc_object("dog", "11 30 20 6"), "dog", "ends before it begins"),
    (voc_object("dog", "9 1 8 4"), "dog", "ends before it begins"),
    (voc_object("dog", "nan 1 9 9"), "dog", "xmin is no number but 'nan'"),
    (voc_object("dog", "1 1 inf 9"), "dog", "xmax is no number but 'inf'"),
    (voc_object("dog", "1 1 9 1e999"), "dog", "ymax is no number but '1e999'"),
    (voc_object("dog", "1 one 9 9"), "dog", "ymin is no number but 'one'"),
    (voc_object("dog", "1 1 1_0 9"), "dog", "xmax is no number but '1_0'"),
    (voc_object("dog", "1 1 9,5 9"), "dog", "xmax is no number but '9,5'"),
    (voc_object("dog", "1 1 1e30 9"), "dog", "1e+30 is far outside"),
    (voc_object("dog", "-999 1 9 9"), "dog", "-999 is far outside"),
    (voc_object("dog", "1 1 9 4000000000"), "dog", "4e+09 is far outside"),
    (voc_object("dog", "45 5 60 9"), "dog", "covers no pixel"),
    (voc_object("dog", "0 0 0 0"), "dog", "covers no pixel"),
    (voc_object("dog", "3.6 3.6 3.7 3.7", ""), "dog", None),
    (NAMED.format(""), "dog", "no bndbox"),
    (NAMED.format("<bndbox/>"), "dog", "no xmin"),
    (NAMED.format("<bndbox>1 1 9 9</bndbox>"), "dog", "no xmin"),
    (voc_object("dog", "1 1 9 9").replace("ymax>", "yend>"), "dog", "no ymax"),
    (voc_object("dog", "1 1 9 9").replace("<xmin>1<", "<xmin><"), "dog", "xmin is no"),
    (
        voc_object("dog", "1 1 9 9").replace("<xmin>", "<xmin>3</xmin><xmin>"),
        "dog",
        "2 xmin in place of one",
    ),
    (
        NAMED.format(2 * "<bndbox><xmin>1</xmin></bndbox>"),
        "dog",
        "2 bndbox in place of one",
    ),
    (voc_object("", "1 1 9 9"), "", "an empty name"),
    (voc_object("dog", "1 1 9 9").replace("name", "label"), "", "no name"),
    (voc_object("dog</name><name>cat", "1 1 9 9"), "", "2 name in place of one"),
    ("<object/>", "", "no name"),
]


@pytest.mark.parametrize(("bad", "label", "reason"), VOC_BAD)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_box_is_left_out_and_named(tmp_path, bad, label, reason, first):
    objects = (bad, CAT) if first else (CAT, bad)
    found = read_one("voc2007", make_voc_record(tmp_path, *objects))
    assert torch.equal(found.objects["cat"], CAT_MASK)
    if reason is None:  # unusual, and right
        assert list(found.objects) == ["dog", "cat"] if first else ["cat", "dog"]
        assert found.flaws == ()
        return
    assert list(found.objects) == ["cat"]
    ((what, whose, why),) = found.flaws
    assert what == f"object {1 if first else 2} of Annotations/a.xml"
    assert whose == label
    assert reason in why
    assert why.endswith(": left out")
    # What is known to be in the image is there, wherever it may be.
    assert found.difficult == {"cat": bool(label)}


def test_a_class_keeps_its_other_boxes(tmp_path):
    other = voc_object("cat", "1 1 2 4")
    bad = voc_object("cat", "9 9 1 1")
    found = read_one("voc2007", make_voc_record(tmp_path, CAT, bad, other))
    assert torch.equal(found.objects["cat"], CAT_MASK | DOG_MASK)
    assert [flaw.label for flaw in found.flaws] == ["cat"]


def test_a_lost_box_does_not_make_a_class_play(tmp_path):
    """All that is left of it is marked difficult."""
    flagged = voc_object("dog", "1 1 2 4", "<difficult>1</difficult>")
    lost = voc_object("dog", "9 9 1 1")
    found = read_one("voc2007", make_voc_record(tmp_path, CAT, flagged, lost))
    assert list(found.objects) == ["cat"]


@pytest.mark.parametrize(
    ("corners", "mask", "told"),
    [
        ("35 5 41 9", box(4, 9, 34, 40), False),  # one pixel, by counting from 0
        ("0 0 4 4", box(0, 4, 0, 4), False),
        ("35 5 60 9", box(4, 9, 34, 40), True),
        ("-9 -9 4 4", box(0, 4, 0, 4), True),
    ],
)
def test_a_box_over_the_edge_is_cut_off(tmp_path, corners, mask, told):
    root = make_voc_record(tmp_path, voc_object("dog", corners))
    found = read_one("voc2007", root)
    assert torch.equal(found.objects["dog"], mask)
    assert reasons(found) == ["reaches beyond the picture: cut off"] * told


def test_parts_of_an_object_are_not_it(tmp_path):
    """VOC's persons have parts with names and boxes of their own."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    person = voc_object("person", "1 1 2 4", part)
    found = read_one("voc2007", make_voc_record(tmp_path, person))
    assert list(found.objects) == ["person"]
    assert torch.equal(found.objects["person"], DOG_MASK)
    assert found.flaws == ()


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>40</width></size>",
        "<size><width>40</width><height>32</height></size>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>x</width><height>-1</height></size>",
    ],
)
def test_a_size_need_not_be_given(tmp_path, size):
    found = read_one("voc2007", make_voc_record(tmp_path, CAT, more=size))
    assert list(found.objects) == ["cat"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((32, 40), r"picture's size \(32, 40\), got \(40, 32\) in .*turned by EXIF"),
        ((64, 80), r"picture's size \(32, 40\), got \(80, 64\) in .*a\.xml$"),
    ],
)
def test_a_record_of_another_size_is_refused(tmp_path, size, text):
    more = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    root = make_voc_record(tmp_path, CAT, more=more)
    with pytest.raises(ValueError, match=text):
        read_one("voc2007", root)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<annotation><object>", r"a\.xml must be XML, got no element found"),
        ("", r"a\.xml must be XML, got no element found"),
        ("{}", r"a\.xml must be XML, got not well-formed"),
        ("<html/>", r"a\.xml must hold an annotation, got html"),
    ],
)
def test_what_is_no_annotation_loses_its_picture(tmp_path, content, text):
    root = make_voc_record(tmp_path)
    (root / "VOCdevkit/VOC2007/Annotations/a.xml").write_text(content)
    with pytest.raises(ValueError, match=text):
        read_one("voc2007", root)


def test_an_annotation_without_objects(tmp_path):
    found = read_one("voc2007", make_voc_record(tmp_path))
    assert (found.objects, found.difficult, found.flaws) == ({}, {}, ())


@pytest.mark.parametrize(
    "text",
    [
        "a\n\nb\n",
        "\n  a  \nb",
        "a\r\n\r\nb\r\n",
        "a\rb\r",
        "\ufeffa\nb\n",
        "a  1\nb -1\n",
        "a 0\nb\t1",
        "# images\na\nb # the second\n",
        "a\nb\na\n",
    ],
)
def test_lists_of_images_as_other_tools_write_them(tmp_path, text):
    root = make_voc(tmp_path, {"a": [("dog", (1, 1, 2, 4), 0)], "b": []})
    file = root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    file.write_bytes(text.encode())
    images = open_images("voc2007", root)
    assert images.images == ["a", "b"]
    assert list(images.read("a").objects) == ["dog"]


def test_names_that_look_like_more_than_a_name(tmp_path):
    names = ["a 1", "#b", "c.d", "my picture", "e#1"]
    root = make_voc(tmp_path, {name: [("dog", (1, 1, 2, 4), 0)] for name in names})
    images = open_images("voc2007", root)
    assert images.images == names
    assert all(list(images.read(name).objects) == ["dog"] for name in names)


def test_a_name_of_other_bytes_is_read_and_can_be_written(tmp_path):
    root = make_voc_record(tmp_path, CAT)
    base = root / "VOCdevkit/VOC2007"
    strange = "caf\udce9"  # Latin-1
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (base / folder / f"a.{suffix}").rename(base / folder / f"{strange}.{suffix}")
    (base / "ImageSets/Main/test.txt").write_bytes(b"caf\xe9\n")
    images = open_images("voc2007", root)
    assert images.images == [r"caf\udce9"]
    assert list(images.read(images.images[0]).objects) == ["cat"]


# --- COCO ---

SQUARE = [20, 8, 28, 8, 28, 16, 20, 16]
GOOD = {"category_id": 17, "segmentation": [SQUARE]}
GOOD_MASK = box(8, 16, 20, 28)
RUNS = [HEIGHT, HEIGHT * 2, HEIGHT * (WIDTH - 3)]  # columns 1 and 2
RUNS_MASK = box(0, HEIGHT, 1, 3)


@pytest.fixture
def coco(tmp_path):
    pytest.importorskip("pycocotools")

    def read(*annotations, **changes):
        folder = tmp_path / "coco"
        shutil.rmtree(folder, ignore_errors=True)
        return read_one("coco2014", make_coco_record(folder, *annotations, **changes))

    return read


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[], []], {}, "absent"])
def test_without_segments_the_box_is_taken_and_that_is_said(coco, segmentation):
    dog = {"segmentation": segmentation, "bbox": [1, 2, 3, 4.0]}
    if segmentation == "absent":
        del dog["segmentation"]
    found = coco(GOOD, dog)
    assert torch.equal(found.objects["cat"], GOOD_MASK)
    assert torch.equal(found.objects["dog"], box(2, 6, 1, 4))
    ((what, label, reason),) = found.flaws
    assert what == "annotation 2 of instances_val2014.json"
    assert (label, reason) == ("dog", "no segmentation: its bbox is taken")


BIG = 10**400
COCO_BAD = [
    # Polygons
    ({"segmentation": [[10, 5, 12, 8]]}, "has 4 numbers, not three points"),
    ({"segmentation": [[10, 5]]}, "has 2 numbers, not three points"),
    ({"segmentation": [[1, 1, 9, 1, 9, 9, 1]]}, "has 7 numbers, not three points"),
    ({"segmentation": [10, 5, 3, 4]}, "has 4 numbers, not three points"),
    ({"segmentation": [[1, 1, 9, 1, 9, math.nan]]}, "is not numbers"),
    ({"segmentation": [[1, 1, 9, 1, math.inf, 9]]}, "is not numbers"),
    ({"segmentation": [[1, 1, 9, 1, 9, BIG]]}, "is not numbers"),
    ({"segmentation": [[1, 1, 9, 1, 9, "9"]]}, "is not numbers"),
    ({"segmentation": [[1, 1, 9, 1, 9, None]]}, "is not numbers"),
    ({"segmentation": [[1, 1, 9, 1, 9, True]]}, "is not numbers"),
    ({"segmentation": [[[1, 1], [9, 1], [9, 9]]]}, "is not numbers"),
    ({"segmentation": [{"x": 1}]}, "is not numbers"),
    ({"segmentation": [None]}, "is not numbers"),
    ({"segmentation": [[1, 1, 9, 1, 9, 1e30]]}, "1e+30 is far outside"),
    ({"segmentation": [[1, 1, 9, 1, 9, -1e308]]}, "-1e+308 is far outside"),
    ({"segmentation": [[1, 1, 9, 1, 9, 2**63]]}, "far outside"),
    ({"segmentation": [[1, 1, 1, 1, 1, 1]]}, "covers no pixel"),
    ({"segmentation": [[50, 1, 60, 1, 60, 9]]}, "covers no pixel"),
    ({"segmentation": "[[1, 1, 9, 1, 9, 9]]"}, "neither list nor object"),
    ({"segmentation": 5}, "neither list nor object"),
    # Run lengths
    ({"segmentation": {"counts": RUNS, "size": [WIDTH, HEIGHT]}}, "size is [40, 32]"),
    ({"segmentation": {"counts": RUNS}}, "size is None"),
    ({"segmentation": {"size": [*SIZE]}}, "counts are not whole numbers"),
    ({"segmentation": {"counts": None, "size": [*SIZE]}}, "not whole numbers"),
    ({"segmentation": {"counts": [], "size": [*SIZE]}}, "counts add up to 0, not"),
    ({"segmentation": {"counts": [1280], "size": [*SIZE]}}, "covers no pixel"),
    ({"segmentation": {"counts": RUNS[:2], "size": [*SIZE]}}, "add up to 96, not"),
    ({"segmentation": {"counts": [*RUNS, 1], "size": [*SIZE]}}, "add up to 1281"),
    ({"segmentation": {"counts": [1, 2**40], "size": [*SIZE]}}, "add up to 1099"),
    ({"segmentation": {"counts": [1, -1, 1280], "size": [*SIZE]}}, "not whole"),
    ({"segmentation": {"counts": [1.5, 1278.5], "size": [*SIZE]}}, "not whole"),
    ({"segmentation": {"counts": [math.nan, 1], "size": [*SIZE]}}, "not whole"),
    ({"segmentation": {"counts": [1, BIG], "size": [*SIZE]}}, "not whole"),
    ({"segmentation": {"counts": ["1", "1279"], "size": [*SIZE]}}, "not whole"),
    ({"segmentation": {"counts": "", "size": [*SIZE]}}, "add up to 0"),
    ({"segmentation": {"counts": "0P", "size": [*SIZE]}}, "counts are a string that"),
    ({"segmentation": {"counts": "a b", "size": [*SIZE]}}, "a damaged string"),
    ({"segmentation": {"counts": "\u00e9", "size": [*SIZE]}}, "a damaged string"),
    ({"segmentation": {"counts": "\x00", "size": [*SIZE]}}, "a damaged string"),
    ({"segmentation": {"counts": "o" * 99, "size": [*SIZE]}}, "a damaged string"),
    ({"segmentation": {"counts": "0O", "size": [*SIZE]}}, "not whole numbers"),
    # Boxes
    ({}, "neither segmentation nor bbox"),
    ({"bbox": None}, "neither segmentation nor bbox"),
    ({"bbox": []}, "not four numbers"),
    ({"bbox": [1, 2, 3]}, "not four numbers"),
    ({"bbox": [1, 2, 3, 4, 5]}, "not four numbers"),
    ({"bbox": [1, 2, math.nan, 4]}, "not four numbers"),
    ({"bbox": ["1", 2, 3, 4]}, "not four numbers"),
    ({"bbox": "1234"}, "not four numbers"),
    ({"bbox": [9, 9, -3, 4]}, "no width or height"),
    ({"bbox": [9, 9, 3, 0]}, "no width or height"),
    ({"bbox": [9, 9, 1e300, 4]}, "far outside"),
    ({"bbox": [1e308, 9, 1e308, 4]}, "far outside"),
    ({"bbox": [9.6, 9.6, 0.5, 0.5]}, "covers no pixel"),
]


@pytest.mark.parametrize(("bad", "reason"), COCO_BAD)
def test_a_bad_segment_is_left_out_and_named(coco, bad, reason):
    found = coco(bad, GOOD)
    assert torch.equal(found.objects["cat"], GOOD_MASK)
    assert list(found.objects) == ["cat"]
    ((what, label, why),) = found.flaws
    assert what == "annotation 1 of instances_val2014.json"
    assert label == "dog"
    assert reason in why
    assert why.endswith(": left out")
    assert found.difficult == {"cat": True}


@pytest.mark.parametrize(
    ("segmentation", "mask"),
    [
        (SQUARE, GOOD_MASK),  # not nested
        ([SQUARE, []], GOOD_MASK),
        ([SQUARE, [0, 0, 4, 0, 4, 4, 0, 4]], GOOD_MASK | box(0, 4, 0, 4)),
        ({"counts": RUNS, "size": [*SIZE]}, RUNS_MASK),
        ({"counts": [float(it) for it in RUNS], "size": [32.0, 40.0]}, RUNS_MASK),
        ({"counts": [0, 32, 1248], "size": [*SIZE]}, box(0, 32, 0, 1)),
        ({"counts": [0, 1280], "size": [*SIZE]}, box(0, 32, 0, 40)),
    ],
)
def test_unusual_segments_that_are_right(coco, segmentation, mask):
    found = coco({"segmentation": segmentation})
    assert torch.equal(found.objects["dog"], mask)
    assert found.flaws == ()


def test_a_bad_polygon_leaves_the_others_of_its_object(coco):
    found = coco({"segmentation": [SQUARE, [1, 2, 3], [], [0, 0, 4, 0, 4, 4, 0, 4]]})
    assert torch.equal(found.objects["dog"], GOOD_MASK | box(0, 4, 0, 4))
    assert reasons(found) == [
        "polygon 2: a polygon has 3 numbers, not three points or more: left out"
    ]
    found = coco({"segmentation": [[1, 2, 3], [4]]})
    assert found.objects == {}
    assert reasons(found)[-1] == "no polygon can be drawn: left out"


def test_a_polygon_over_the_edge_is_cut_off(coco):
    found = coco({"segmentation": [[30, 8, 60, 8, 60, 16, 30, 16]]})
    assert torch.equal(found.objects["dog"], box(8, 16, 30, 40))
    assert reasons(found) == ["reaches beyond the picture: cut off"]


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 50), st.booleans())
def test_compressed_runs_against_pycocotools(seed, height, width, as_bytes):
    drawn = pytest.importorskip("pycocotools.mask")
    source = np.random.default_rng(seed)
    mask = source.random((height, width)) < source.random()
    mask[source.integers(height), source.integers(width)] = True
    runs = drawn.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = runs["counts"] if as_bytes else runs["counts"].decode()
    record = {"segmentation": {"counts": counts, "size": [height, width]}}
    found = coco_object(record, "dog", (height, width))
    assert found.reasons == []
    assert torch.equal(found.mask, torch.from_numpy(mask))
    # Whatever is done to the string, it gives such a mask or is left out.
    place = int(source.integers(len(counts)))
    for damaged in (counts[:place], counts[:place] + counts[place + 1 :], 2 * counts):
        record["segmentation"]["counts"] = damaged
        found = coco_object(record, "dog", (height, width))
        assert found.mask is None or found.mask.shape == mask.shape
        assert (found.mask is None) == bool(found.reasons)


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.integers(-9, 60),
    st.none(),
    st.text(max_size=2),
    st.booleans(),
)
PARTS = st.lists(st.one_of(NUMBERS, st.lists(NUMBERS, max_size=9)), max_size=9)


@given(
    st.one_of(
        PARTS,
        st.fixed_dictionaries(
            {}, optional={"counts": st.one_of(PARTS, st.text()), "size": PARTS}
        ),
        NUMBERS,
    ),
    st.one_of(PARTS, NUMBERS),
)
def test_nothing_that_json_can_hold_ends_the_process(segmentation, bbox):
    pytest.importorskip("pycocotools")
    record = {"segmentation": segmentation, "bbox": bbox}
    found = coco_object(record, "dog", SIZE)
    assert found.reasons or found.mask is not None
    assert found.mask is None or (found.mask.shape == SIZE and found.mask.any())


@pytest.mark.parametrize(
    ("category", "categories", "reason"),
    [
        (999, None, "category 999 has no name"),
        (None, None, "category None has no name"),
        ([18], None, "category [18] has no name"),
        ("18", None, "category '18' has no name"),
        (True, None, "category True has no name"),
        (18, [{"id": 17, "name": "cat"}, {"id": 18}], "category 18 has no name"),
        (
            18,
            [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"},
             {"id": 18, "name": "dax"}],
            "category 18 has names dog and dax",
        ),
        (18, [{"id": 17, "name": "cat"}, None, {"id": 18, "name": 5}],
         "category 18 has no name"),
    ],
)  # fmt: skip
def test_a_category_without_a_name(coco, category, categories, reason):
    changes = {} if categories is None else {"categories": categories}
    found = coco(GOOD, {"segmentation": [SQUARE], "category_id": category}, **changes)
    assert list(found.objects) == ["cat"]
    assert found.flaws == (
        ("annotation 2 of instances_val2014.json", "", f"{reason}: left out"),
    )


def test_annotations_that_belong_to_no_image_are_passed_over(coco):
    others = [{**GOOD, "image_id": it} for it in (2, None, [1], {"id": 1}, "1", True)]
    missing = {"id": 8, "category_id": 18, "segmentation": [SQUARE]}
    found = coco(*others, None, 5, [1])
    assert (found.objects, found.flaws) == ({}, ())
    found = coco(annotations=[missing, {"image_id": 1, **GOOD}])
    assert list(found.objects) == ["cat"]


def test_annotations_of_one_id_all_count(coco):
    found = coco({**GOOD, "id": 5}, {"id": 5, "segmentation": [SQUARE]})
    assert list(found.objects) == ["cat", "dog"]


@pytest.mark.parametrize(
    "size", [{}, {"height": 32}, {"height": None, "width": None},
             {"height": 0, "width": 0}, {"height": math.nan, "width": 40},
             {"height": "32", "width": "40"}, {"height": 32.0, "width": 40}],
)  # fmt: skip
def test_coco_need_not_give_the_size(coco, size):
    found = coco(GOOD, images=[{"id": 1, "file_name": "a.jpg", **size}])
    assert torch.equal(found.objects["cat"], GOOD_MASK)


def test_coco_of_another_size_is_refused(coco):
    entry = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 32}
    with pytest.raises(ValueError, match=r"got \(40, 32\) in .*turned by EXIF"):
        coco(GOOD, images=[entry])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"annotations": None}, "and categories, got no annotations"),
        ({"images": None}, "and categories, got no images"),
        ({"categories": None}, "and categories, got no categories"),
        ({"annotations": {"id": 1}}, "and categories, got no annotations"),
        ({"images": "a.jpg"}, "and categories, got no images"),
    ],
)
def test_a_file_without_its_lists_is_refused(coco, content, text):
    with pytest.raises(ValueError, match=text):
        coco(GOOD, **content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "must hold the lists images"),
        (b"{", "must be JSON"),
        (b"", "must be JSON"),
        (b"\xff\xfe{", "must be JSON"),
    ],
)
def test_what_is_no_file_of_coco(tmp_path, text, message):
    pytest.importorskip("pycocotools")
    root = make_coco_record(tmp_path)
    (root / "annotations/instances_val2014.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        open_images("coco2014", root)


def test_entries_that_cannot_be_images_lose_no_other(tmp_path):
    pytest.importorskip("pycocotools")
    good = {"id": 1, "file_name": "a.jpg"}
    entries = [
        good,
        {"id": 2},  # no file
        {"id": 3, "file_name": 5},
        {"file_name": "b.jpg"},  # no id
        {"id": 4, "file_name": "c.jpg"},  # one id, two images
        {"id": 4, "file_name": "d.jpg"},
        None,
    ]
    root = make_coco_record(tmp_path, GOOD, images=entries)
    for name in "bcd":
        shutil.copy(root / "val2014/a.jpg", root / f"val2014/{name}.jpg")
    images = open_images("coco2014", root)
    errors = {}
    for name in images.images:
        try:
            assert torch.equal(images.read(name).objects["cat"], GOOD_MASK)
        except (OSError, ValueError) as error:
            errors[name] = str(error)
    assert sorted(errors) == [
        "b", "c", "d", "no file_name of images[1]", "no file_name of images[2]",
    ]  # fmt: skip
    assert "must have ids of their own, got None for b.jpg" in errors["b"]
    assert "ids of their own, got 4 for c.jpg and d.jpg" in errors["c"]


# --- names of images ---


def test_images_of_one_name_get_names_of_their_own(tmp_path):
    pytest.importorskip("pycocotools")
    files = ["x.jpg", "east/a.jpg", "west/a.jpg", "a.jpg", "b.jpg", "b.png", "c.d.jpg"]
    entries = [{"id": n, "file_name": it} for n, it in enumerate(files, start=1)]
    twice = {"id": 99, "file_name": "./x.jpg"}  # one more entry of the first
    cat = {"image_id": 99, **GOOD}
    dog = {"image_id": 3, "segmentation": [SQUARE]}
    root = make_coco_record(tmp_path, cat, dog, images=[*entries, twice])
    for number, file in enumerate(files):
        path = root / "val2014" / file
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (20 * number, 0, 0)).save(path)
    images = open_images("coco2014", root)
    assert images.images == [
        "x", "east/a", "west/a", "a", "b.jpg", "b.png", "c.d",
    ]  # fmt: skip
    shades = [images.read(it).picture.getpixel((0, 0))[0] for it in images.images]
    assert shades == pytest.approx(range(0, 140, 20), abs=5)
    assert list(images.read("x").objects) == ["cat"]
    assert list(images.read("west/a").objects) == ["dog"]
    assert images.read("east/a").objects == {}


def test_names_in_folders_of_voc(tmp_path):
    root = make_voc_record(tmp_path, CAT)
    base = root / "VOCdevkit/VOC2007"
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        for part in ("n", "s"):
            (base / folder / part).mkdir()
            file = base / folder / f"a.{suffix}"
            shutil.copy(file, base / folder / part / file.name)
    (base / "ImageSets/Main/test.txt").write_text("n/a\ns/a\n")
    images = open_images("voc2007", root)
    assert images.images == ["n/a", "s/a"]
    assert all(list(images.read(it).objects) == ["cat"] for it in images.images)


def test_ids_without_an_order_keep_that_of_the_file(tmp_path):
    pytest.importorskip("pycocotools")
    entries = [{"id": "9", "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    root = make_coco_record(tmp_path, images=entries)
    assert open_images("coco2014", root).images == ["b", "a"]
    content = {"images": [{**it, "id": int(it["id"])} for it in entries]}
    file = root / "annotations/instances_val2014.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    assert open_images("coco2014", root).images == ["a", "b"]
