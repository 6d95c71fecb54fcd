"""Files of pictures -> what the network is shown; the values are worked out by hand."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision import transforms as T

from captum_extremal.cli.main import main
from captum_extremal.cli.options import open_picture
from captum_extremal.models.networks import Preprocess

RAMP = np.tile(np.arange(256), (4, 1))  # what every ramp of 256 steps is to become
BITS, PHOTOMETRIC, SAMPLES = 258, 262, 339  # tags of a TIFF
LEAST, GREATEST, SIGNED_LEAST, SIGNED_GREATEST = 280, 281, 340, 341


@pytest.fixture
def opened(tmp_path):
    """The pixels of a picture that is written to a file and read again, (H, W, 3)."""

    def read(picture, name="picture.tif", **options):
        picture.save(tmp_path / name, **options)
        return np.asarray(open_picture(tmp_path / name))

    return read


def tiff(values, **tags):
    """A TIFF of one strip, little-endian, whose tags Pillow might not write."""
    height, width = values.shape
    content = values.tobytes()
    bits = tags.pop("bits", 8 * values.dtype.itemsize)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    rows = {
        256: (3, width), 257: (3, height), BITS: (3, bits), 259: (3, 1),
        PHOTOMETRIC: (3, tags.pop("photometric", 1)), 273: (4, 8), 277: (3, 1),
        278: (3, height), 279: (4, len(content)), SAMPLES: (3, kind),
    }  # fmt: skip
    rows |= tags.pop("more", {})
    entries = b"".join(
        struct.pack("<HHI", tag, form, 1)
        + struct.pack({3: "<Hxx", 4: "<I", 9: "<i"}[form], value)
        for tag, (form, value) in sorted(rows.items())
    )
    header = b"II*\0" + struct.pack("<I", 8 + len(content)) + content
    return header + struct.pack("<H", len(rows)) + entries + bytes(4)


def png(values, colours, *chunks):
    """A PNG of 16 bits, big-endian values (H, W) or (H, W, C), with further chunks."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# --- grey of other ranges ---


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((RAMP * 4).astype(np.uint16), "0..1020"),
        ((RAMP * 16).astype(np.uint16), "0..4080"),
        ((RAMP * 64).astype(np.uint16), "0..16320"),
        ((RAMP * 3).astype(np.uint16), "0..765"),
        (RAMP.astype(np.uint16), "0..255"),
        (RAMP.astype(np.int32), "0..255"),
        ((RAMP * 1000).astype(np.int32), "0..255000"),
        ((RAMP * 8 - 1024).astype(np.int32), "-1024..1016"),
        ((RAMP * 16 - 4080).astype(np.int32), "-4080..0"),
        ((RAMP / 510).astype(np.float32), "0..0.5"),
        (RAMP.astype(np.float32), "0..255"),
        ((RAMP * 8 - 1024).astype(np.float32), "-1024..1016"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.dtype.name,
)
def test_a_ramp_of_any_range_is_the_ramp(opened, capsys, values, told):
    found = opened(Image.fromarray(values))
    assert (found[..., 0] == found[..., 2]).all()
    # floats are rounded before they get here
    slack = 1 if values.dtype == np.float32 else 0
    np.testing.assert_allclose(found[..., 0], RAMP, atol=slack)
    assert found.max() == 255
    assert found.min() == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"IMAGE holds grey values {told}, shown as black to white: ")


@pytest.mark.parametrize("name", ["full.png", "full.tif"])
def test_16_bits_that_are_used_up_are_divided_by_256(opened, capsys, name):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(
        opened(Image.fromarray(values), name)[..., 1], values // 256
    )
    bright = values // 2 + 2**15  # no black in it: a photograph of snow
    np.testing.assert_array_equal(
        opened(Image.fromarray(bright), name)[..., 1], bright // 256
    )
    assert capsys.readouterr().err == ""


def test_floats_from_0_to_1_are_black_to_white(opened, capsys):
    values = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    assert opened(Image.fromarray(values))[0, :, 0].tolist() == [0, 64, 128, 255]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("factor", [257, 16])
@pytest.mark.parametrize(
    ("mode", "order"),
    [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")],
)
def test_every_order_of_bytes(monkeypatch, tmp_path, mode, order, factor):
    content = (RAMP * factor).astype(order).tobytes()
    monkeypatch.setattr(
        Image, "open", lambda path: Image.frombytes(mode, (256, 4), content)
    )
    found = np.asarray(open_picture(tmp_path / "a"))
    np.testing.assert_array_equal(found[..., 0], RAMP)


@pytest.mark.parametrize("factor", [257, 16])
def test_a_big_endian_file(opened, factor):
    values = (RAMP * factor).astype(">u2")
    picture = Image.frombytes("I;16B", (256, 4), values.tobytes())
    np.testing.assert_array_equal(opened(picture)[..., 0], RAMP)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_mask_of_0_and_1_is_black_and_white(opened, dtype):
    values = np.array([[0, 1], [1, 0]], dtype=dtype)
    assert opened(Image.fromarray(values))[..., 0].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (7, 255), (60000, 234), (-5, 0)])
def test_one_value_everywhere(opened, value, grey):
    found = opened(Image.fromarray(np.full((3, 3), value, dtype=np.int32)))
    assert (found == grey).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_float_picture_must_be_finite(opened, wrong):
    values = np.ones((3, 3), dtype=np.float32)
    values[1, 1] = wrong
    with pytest.raises(click.UsageError, match=r"finite grey values, .*: /.*e\.tif"):
        opened(Image.fromarray(values))


@pytest.mark.parametrize(
    ("values", "tags", "expected", "told"),
    [
        (RAMP[:, :9] * 16, {"more": {GREATEST: (3, 4095)}}, RAMP[:, :9], "0..4095"),
        (
            np.array([[-1024, 1000]], np.int32),
            {"more": {SIGNED_LEAST: (9, -1024), SIGNED_GREATEST: (9, 3071)}},
            [[0, 126]],
            "-1024..3071",
        ),
    ],
)
def test_a_range_that_the_file_tells(tmp_path, capsys, values, tags, expected, told):
    kind = np.uint16 if values.dtype == np.int64 else values.dtype
    (tmp_path / "a.tif").write_bytes(tiff(values.astype(kind), **tags))
    found = np.asarray(open_picture(tmp_path / "a.tif"))
    np.testing.assert_array_equal(found[..., 0], expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"IMAGE says that its grey values are {told}, shown as ")


@pytest.mark.parametrize(
    "more",
    [
        {GREATEST: (3, 65535)},  # what the type can hold says nothing
        {GREATEST: (3, 100)},  # the values say otherwise
        {LEAST: (3, 500), GREATEST: (3, 5)},
    ],
)
def test_a_range_that_is_none(tmp_path, more):
    values = (RAMP * 16).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(values, more=more))
    found = np.asarray(open_picture(tmp_path / "a.tif"))
    np.testing.assert_array_equal(found[..., 0], RAMP)


def test_12_bits_a_sample_are_told_by_the_file(tmp_path, capsys):
    content = np.array([[0x80, 0x00, 0x10]], dtype=np.uint8)  # 2048, 16
    size = {256: (3, 2), 257: (3, 1)}
    (tmp_path / "a.tif").write_bytes(tiff(content, bits=12, more=size))
    with Image.open(tmp_path / "a.tif") as file:
        assert file.mode == "I;16"
    found = np.asarray(open_picture(tmp_path / "a.tif"))
    assert found[0, :, 0].tolist() == [128, 1]
    assert "0..4095" in capsys.readouterr().err


def test_32_bits_without_a_sign(tmp_path):
    values = (RAMP.astype(np.uint32) << 24) + 2**24 - 1
    (tmp_path / "a.tif").write_bytes(tiff(values))
    found = np.asarray(open_picture(tmp_path / "a.tif"))
    np.testing.assert_array_equal(found[..., 0], RAMP)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.uint8])
@pytest.mark.parametrize("factor", [1, 257])
def test_0_may_be_white(tmp_path, dtype, factor):
    values = (RAMP * (factor if dtype != np.uint8 else 1)).astype(dtype)
    (tmp_path / "a.tif").write_bytes(tiff(values, photometric=0))
    found = np.asarray(open_picture(tmp_path / "a.tif"))
    np.testing.assert_array_equal(found[..., 0], 255 - RAMP)


def test_a_transparent_grey_of_16_bits_is_white_and_out_of_the_range(tmp_path):
    values = np.array([[0, 65535, 2040, 4080]])
    key = (b"tRNS", struct.pack(">H", 65535))
    (tmp_path / "a.png").write_bytes(png(values, 0, key))
    found = np.asarray(open_picture(tmp_path / "a.png"))
    assert found[0, :, 0].tolist() == [0, 255, 128, 255]


def test_colours_of_12_in_16_bits_are_not_dark_without_a_word(tmp_path, capsys):
    values = np.stack([RAMP * 16] * 3, axis=2)
    (tmp_path / "a.png").write_bytes(png(values, 2))
    assert np.asarray(open_picture(tmp_path / "a.png")).max() == 15
    assert capsys.readouterr().err == (
        "IMAGE has 16 bits a colour, of which the upper 8 are read: "
        "its brightest value is 15 of 255\n"
    )
    clear = np.concatenate([values, 0 * values[..., :1]], axis=2)
    (tmp_path / "a.png").write_bytes(png(clear, 6))
    assert np.asarray(open_picture(tmp_path / "a.png")).min() == 255
    assert "its brightest value is 15 of 255" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(png(values * 16, 2))
    np.testing.assert_array_equal(
        np.asarray(open_picture(tmp_path / "a.png"))[..., 2], RAMP
    )
    assert capsys.readouterr().err == ""


def test_the_range_is_told_before_the_search(tmp_path):
    Image.fromarray((RAMP * 16).astype(np.uint16)).save(tmp_path / "a.tif")
    done = CliRunner().invoke(main, ["explain", str(tmp_path / "a.tif"), "--model=no"])
    told, error = done.stderr.splitlines()
    assert told.startswith("IMAGE holds grey values 0..4080")
    assert error.startswith("captum-extremal: model must be")
    assert done.exit_code == 2


# --- the right way up ---


def corners():
    """Four colours, so that each of the eight ways is another picture."""
    values = np.zeros((16, 32, 3), dtype=np.uint8)
    values[:8, :16], values[:8, 16:], values[8:, :16] = 255, (255, 0, 0), (0, 0, 255)
    return Image.fromarray(values)


TURNED = {  # numpy's words for what the standard says of row 0 and column 0
    1: lambda v: v,
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1),
    6: lambda v: np.rot90(v, -1),
    7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
    8: lambda v: np.rot90(v),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.mpo"])
def test_all_eight_orientations(opened, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"append_images": [Image.new("RGB", (32, 16))], "save_all": True}
    found = opened(
        corners(), name, exif=exif, **(options if name == "a.mpo" else {})
    )  # fmt: skip
    expected = TURNED[orientation](np.asarray(corners()))
    assert found.shape == expected.shape
    assert (abs(found.astype(int) - expected) < 20).mean() > 0.9  # JPEG blurs


def with_tags(*entries, after=b"", raw=None):
    """A JPEG of 8 x 4 pixels whose EXIF block has these entries."""
    rows = b"".join(struct.pack("<HHI", *it[:3]) + it[3] for it in entries)
    block = b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + after
    block = b"Exif\0\0" + (block if raw is None else raw)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG")
    content = buffer.getvalue()
    length = struct.pack(">H", len(block) + 2)
    return content[:2] + b"\xff\xe1" + length + block + content[2:]


SIX = (0x112, 3, 1, struct.pack("<HH", 6, 0))
AT_38 = struct.pack("<I", 38)


@pytest.mark.parametrize(
    ("odd", "after"),
    [
        ((0x11A, 10, 1, AT_38), struct.pack("<ii", -1, 0)),  # resolution: -1/0
        ((0x11A, 5, 1, AT_38), struct.pack("<II", 0, 0)),
        ((0x11A, 2, 4, b"72\0\0"), b""),  # a text
        ((0x11A, 12, 1, AT_38), struct.pack("<d", float("nan"))),
        ((0x11A, 3, 1, struct.pack("<HH", 72, 0)), b""),
        ((0x128, 8, 1, struct.pack("<hh", -1, 0)), b""),
        ((0x132, 3, 9000, AT_38), b""),  # beyond the end
        ((0x8769, 4, 1, struct.pack("<I", 4000)), b""),  # a block that is not there
        ((0x8825, 2, 4, b"gps\0"), b""),
        ((0x9999, 77, 1, bytes(4)), b""),  # no such type
    ],
    ids=lambda value: hex(value[0]) if isinstance(value, tuple) else "",
)
def test_a_tag_that_does_not_matter(tmp_path, odd, after):
    (tmp_path / "a.jpg").write_bytes(with_tags(SIX, odd, after=after))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(tmp_path / "a.jpg").size == (4, 8)


@pytest.mark.parametrize(
    "orientation",
    [
        (0x112, 3, 1, struct.pack("<HH", 0, 0)),
        (0x112, 3, 1, struct.pack("<HH", 9, 0)),
        (0x112, 2, 2, b"6\0\0\0"),
        (0x112, 7, 4, b"\x06\0\0\0"),
        (0x112, 5, 1, struct.pack("<I", 4000)),
        (0x112, 8, 1, struct.pack("<hh", -6, 0)),
    ],
)
def test_an_orientation_that_is_none_leaves_the_picture_as_stored(
    tmp_path, orientation
):
    (tmp_path / "a.jpg").write_bytes(with_tags(orientation))
    assert open_picture(tmp_path / "a.jpg").size == (8, 4)


@pytest.mark.parametrize(
    "raw", [b"", b"II", b"nonsense" * 4, b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0"]
)
def test_a_damaged_block_of_tags(tmp_path, raw):
    (tmp_path / "a.jpg").write_bytes(with_tags(raw=raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(tmp_path / "a.jpg").size == (8, 4)


def test_the_orientation_of_xmp(opened):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    found = opened(corners(), "a.jpg", xmp=xmp)
    assert found.shape == (32, 16, 3)


# --- colours and frames ---


def test_the_first_frame(opened):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        found = opened(
            first, name, save_all=True, append_images=[second],
            **({"lossless": True} if name == "a.webp" else {}),
        )  # fmt: skip
        assert (found == (255, 0, 0)).all(), name


RED_AND_CLEAR = [[(255, 0, 0), (255, 255, 255)]]


def palette_picture(transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = transparency
    return picture


def one_row(mode, *pixels):
    picture = Image.new(mode, (len(pixels), 1))
    picture.putdata(pixels)
    return picture


@pytest.mark.parametrize(
    ("picture", "name", "expected"),
    [
        (palette_picture(1), "a.png", RED_AND_CLEAR),
        (palette_picture(b"\xff\x00"), "a.png", RED_AND_CLEAR),
        (palette_picture(1), "a.gif", RED_AND_CLEAR),
        (one_row("RGBA", (255, 0, 0, 255), (9, 9, 9, 0)), "a.png", RED_AND_CLEAR),
        (one_row("LA", (0, 255), (0, 0)), "a.png", [[(0,) * 3, (255,) * 3]]),
        (one_row("LA", (0, 255), (0, 0)), "a.tif", [[(0,) * 3, (255,) * 3]]),
        (one_row("1", 0, 255), "a.png", [[(0,) * 3, (255,) * 3]]),
        (one_row("1", 0, 255), "a.tif", [[(0,) * 3, (255,) * 3]]),
        (one_row("L", 3, 200), "a.png", [[(3,) * 3, (200,) * 3]]),
        (one_row("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "a.tif", RED_AND_CLEAR),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_the_colours_of_every_mode(opened, picture, name, expected):
    assert opened(picture, name).tolist() == [[list(it) for it in expected[0]]]


def test_a_premultiplied_grey(tmp_path):
    values = np.array([[[128, 128], [0, 0]]], dtype=np.uint8)  # white, half there
    more = {256: (3, 2), 277: (3, 2), 338: (3, 1), BITS: (4, 8 | 8 << 16)}
    content = tiff(values.reshape(1, 4), more=more)
    # Two numbers of 16 bits for the bits of each sample.
    row = struct.pack("<HHI", BITS, 4, 1)
    content = content.replace(row, struct.pack("<HHI", BITS, 3, 2))
    (tmp_path / "a.tif").write_bytes(content)
    with Image.open(tmp_path / "a.tif") as file:
        assert file.mode == "La"
    found = np.asarray(open_picture(tmp_path / "a.tif"))
    assert found[0, :, 0].tolist() == [255, 255]


def test_a_cmyk_photograph_is_not_inverted(opened):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = opened(red, "a.jpg", quality=95).astype(int)
    assert abs(found - (255, 0, 0)).max() < 8


def test_lab(opened):
    found = opened(Image.new("LAB", (2, 2), (255, 128, 128)))
    assert found.min() > 245  # white


@pytest.mark.parametrize("name", ["empty.png", "text.png", "half.png", "bad.tif"])
def test_what_is_no_picture_is_a_usage_error(tmp_path, name):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    content = {
        "empty.png": b"",
        "text.png": b"no picture",
        "half.png": buffer.getvalue()[:600],
        "bad.tif": b"II*\0" + bytes(40),
    }[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        click.UsageError, match=f"IMAGE must be a picture, got .*{name}"
    ):
        open_picture(tmp_path / name)


# --- what the network is shown of it ---


def resized_as_a_whole(preprocess, picture):
    mode = T.InterpolationMode(preprocess.interpolation)
    steps = [T.Resize(preprocess.resize, mode), T.CenterCrop(preprocess.crop)]
    return T.Compose([*steps, T.PILToTensor()])(picture)


def noise(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


WAYS = [
    Preprocess(),
    Preprocess(crop=(240, 200), resize=(232,), interpolation="bicubic"),
    Preprocess(crop=(64, 64), resize=(40,)),  # larger than what there is: black edges
    Preprocess(crop=(48, 48), resize=(48, 60)),
]


@pytest.mark.parametrize("preprocess", WAYS, ids=range(4))
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 501), (50, 37), (224, 224), (1000, 130), (31, 240)]
)
def test_the_pixels_of_ordinary_pictures(preprocess, size):
    picture = noise(*size)
    image, _ = preprocess(picture)
    assert torch.equal(image, resized_as_a_whole(preprocess, picture).float() / 255)


@pytest.mark.parametrize("preprocess", WAYS, ids=range(4))
@pytest.mark.parametrize(
    "size", [(640, 20), (20, 640), (33, 400), (1, 9), (9, 1), (9, 2001), (4000, 300)]
)
def test_a_sliver_is_what_it_was_within_a_rounding(preprocess, size):
    picture = noise(*size)
    image, _ = preprocess(picture)
    difference = 255 * image - resized_as_a_whole(preprocess, picture)
    assert difference.abs().max() < 1.01
    assert (difference.abs() > 0.01).float().mean() < 0.02


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (40_000, 30)])
def test_no_more_of_a_sliver_is_resized_than_is_kept(monkeypatch, size):
    sizes = []
    original = Image.Image.resize

    def noted(self, size, *args, **options):
        sizes.append(size)
        return original(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    image, _ = Preprocess()(Image.new("RGB", size, "red"))
    (made,) = sizes
    assert max(made) == 256
    assert image.shape == (3, 224, 224)
    assert image.amin(dim=(1, 2)).tolist() == [1, 0, 0]
