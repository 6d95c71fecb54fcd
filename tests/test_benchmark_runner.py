"""Whole runs on small folders: the command, its end at any moment, several ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import get_model

from captum_extremal import LevelSetSolver, methods
from captum_extremal.benchmark import Example, Flaw, ImageSet, Plan, Row, read, runner
from captum_extremal.benchmark import run as run_plan
from captum_extremal.benchmark.pairs import Pair
from captum_extremal.benchmark.store import writing
from captum_extremal.cli.main import main
from captum_extremal.models.networks import Preprocess
from tiny_data import SIZE, make_coco, make_voc, many, picture, voc_object

METHODS = "centre,gradient,grad-cam"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random network with a head for VOC's 20 classes, small images."""
    path = tmp_path_factory.mktemp("runner")
    torch.manual_seed(0)
    model = get_model("squeezenet1_1", num_classes=20)
    with torch.no_grad():  # untouched, the ReLU at its end makes most scores 0
        model.classifier[1].weight *= 10
        model.classifier[1].bias += 10
    torch.save(model.state_dict(), path / "voc.pt")
    torch.manual_seed(0)
    torch.save(get_model("squeezenet1_1").state_dict(), path / "imagenet.pt")
    make_voc(path / "voc", many(6))
    return path


def arguments(folder, output, *more, root="voc", weights="voc.pt", methods=METHODS):
    return [
        "benchmark", "--dataset=voc2007", f"--root={folder / root}",
        f"--output={output}", "--model=torchvision:squeezenet1_1",
        f"--weights={folder / weights}", "--size=64", f"--methods={methods}",
        "--threads=1", *more,
    ]  # fmt: skip


@pytest.fixture
def run(folder, tmp_path):
    def invoke(*more, output="out", **places):
        done = CliRunner().invoke(
            main, arguments(folder, tmp_path / output, *more, **places)
        )
        assert done.exit_code == 0, done.output
        return done

    return invoke


def start(folder, output, rank=None, world=1, port=0, methods=METHODS, slow=0.0):
    """The command in a process of its own, as torchrun starts it.

    All but the first rank see an empty folder, as on a slow network file system.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if rank is not None:
        environment |= {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    code = (
        "import sys, time\n"
        "from captum_extremal.benchmark import runner, store\n"
        f"if {bool(rank)}: runner.read = lambda folder: store.Content()\n"
        "from captum_extremal.cli.main import main\n"
        "add = store.Writer.add\n"
        f"store.Writer.add = lambda self, row: (add(self, row), time.sleep({slow}))\n"
        "main(sys.argv[1:])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments(folder, output, methods=methods)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    return out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def values(content):
    """All rows without their times, by image, class and method."""
    return {
        (row.image, row.label, row.method): {
            name: value for name, value in asdict(row).items() if name != "seconds"
        }
        for row in content.rows.values()
    }


def without_times(output):
    """The words of a report but for the seconds, which end their lines."""
    return [line.split()[:-1] for line in output.splitlines()]


# --- one process ---


def test_a_row_for_each_image_class_and_method(run, tmp_path):
    done = run()
    content = read(tmp_path / "out")
    assert len(content.rows) == 3 * (6 + 3)
    assert len(values(content)) == 3 * (6 + 3)
    assert content.failures == []
    dogs = [row for row in content.rows.values() if row.label == "dog"]
    assert {row.target for row in dogs} == {11}
    assert all(0 < row.probability < 1 and row.seconds > 0 for row in dogs)
    centre = {
        (row.label, row.row, row.column, row.hit, row.inside, row.energy)
        for row in content.rows.values()
        if row.method == "centre"
    }
    # The dog ends 12 pixels left of the middle, the cat begins 4 or 5 right of it.
    # Nothing of the map is positive.
    ((row, column),) = {point[1:3] for point in centre}
    assert (row, column) in [(r, c) for r in (15, 16) for c in (19, 20)]
    assert centre == {
        ("dog", row, column, 1.0, 0.0, None),
        ("cat", row, column, 1.0, 0.0, None),
    }
    assert "voc2007 torchvision:squeezenet1_1" in done.stdout
    assert re.search(r"^centre +100\.0/100\.0$", done.stdout, re.M)
    assert "6/6" in done.stderr
    assert "image/s" in done.stderr or "s/image" in done.stderr


def test_a_second_run_does_nothing_again(run, tmp_path):
    run()
    before = read(tmp_path / "out")
    done = run()
    assert read(tmp_path / "out") == before  # the seconds, too
    assert "0image" in done.stderr.replace(" ", "") or "0/0" in done.stderr


def test_what_a_row_depends_on_makes_it_another(run, tmp_path):
    run(methods="grad-cam")
    run(methods="grad-cam,centre")
    content = read(tmp_path / "out")
    assert len(content.rows) == 2 * 9
    assert len(content.settings) == 2
    run("--layer=features.3", methods="grad-cam,centre")
    content = read(tmp_path / "out")
    assert len(content.rows) == 3 * 9  # the centre has no layer
    run("--resize=shorter", methods="centre")
    run("--size=48", methods="centre")
    assert len(read(tmp_path / "out").rows) == 5 * 9
    done = CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--format=csv"])
    names = [line.split(",")[2] for line in done.stdout.splitlines()[1:]]
    assert len([name for name in names if name.startswith("grad-cam ")]) == 2
    assert names.count("centre") == 3


def test_an_imagenet_model_plays_the_classes_it_knows(run, tmp_path):
    objects = [("dog", (1, 1, 8, 16), 0), ("person", (1, 1, 40, 32), 0)]
    make_voc(tmp_path / "more", {"000001": objects})
    run(weights="imagenet.pt", root=tmp_path / "more", methods="centre")
    (row,) = read(tmp_path / "out").rows.values()
    assert row.label == "dog"
    assert 151 <= row.target <= 275
    assert row.difficult is True  # small, and the person is another class


def test_pairs_and_probabilities_select(run, tmp_path):
    pairs = [["000001", "dog"], ["000003", "cat", 5], ["999999", "cat"]]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    run(f"--pairs={tmp_path / 'pairs.json'}", methods="centre")
    rows = read(tmp_path / "out").rows.values()
    assert [(row.image, row.label, row.target) for row in rows] == [
        ("000001", "dog", 11), ("000003", "cat", 5),
    ]  # fmt: skip
    run(methods="centre", output="all")
    every = read(tmp_path / "all").rows.values()
    bound = sorted(row.probability for row in every)[4]
    run(f"--min-probability={bound}", methods="centre", output="sure")
    sure = read(tmp_path / "sure").rows
    assert len(sure) == 5
    # More pairs later: those that are there are not done again.
    run(methods="centre", output="sure")
    content = read(tmp_path / "sure")
    assert len(content.rows) == 9
    assert {key: content.rows[key] for key in sure} == sure  # the seconds, too
    run("--images=2", methods="centre", output="two")
    assert {row.image for row in read(tmp_path / "two").rows.values()} == {
        "000001", "000002",
    }  # fmt: skip


def test_the_table_of_a_run_is_that_of_its_pairs(run, tmp_path):
    """Whatever else the folder holds: `report` shows that."""
    run(methods="centre")
    run("--size=32", methods="centre")
    done = run("--images=2", methods="gradient")
    text = done.stdout.splitlines()
    assert [line.split()[0] for line in text[1:3]] == ["centre", "gradient"]
    assert [line.split()[7] for line in text[6:8]] == ["3", "3"]
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[["000001", "dog"]]')
    done = run(f"--pairs={pairs}", methods="centre")
    assert [line.split()[7] for line in done.stdout.splitlines()[6:8]] == ["1", "1"]
    report = CliRunner().invoke(main, ["report", str(tmp_path / "out")]).stdout
    assert report.count("torchvision:squeezenet1_1 ") > 2  # two sizes, told apart


def test_a_list_of_difficult_pairs(run, tmp_path):
    (tmp_path / "hard.json").write_text('[["000001", "cat"], ["000001", "dog"]]')
    run(methods="centre")
    done = run(f"--difficult={tmp_path / 'hard.json'}", methods="centre")
    content = read(tmp_path / "out")
    assert len(content.rows) == 9  # nothing was done again
    line = done.stdout.splitlines()[5].split()
    assert line[7:9] == ["9", "2"]


def test_a_method_of_ones_own_is_played(run, tmp_path, monkeypatch):
    def build(model, options):
        return lambda inputs, target: methods.Explained(inputs[:, :1])

    monkeypatch.setitem(methods.METHODS, "mine", methods.Method(build))
    done = run(methods="centre,mine")
    names = {row.method for row in read(tmp_path / "out").rows.values()}
    assert names == {"centre", "mine"}
    assert any(line.startswith("mine ") for line in done.stdout.splitlines())
    assert "mine." in CliRunner().invoke(main, ["benchmark", "--help"]).stdout


def test_maps_and_masks_are_kept(run, tmp_path):
    run("--save-maps", "--areas=0.1,0.3", "--steps=2", "--images=1",
        methods="centre,extremal")  # fmt: skip
    files = {it.parent.name: it for it in tmp_path.glob("out/maps/*/*.safetensors")}
    content = read(tmp_path / "out")
    by_method = {row.method: row for row in content.rows.values() if row.label == "cat"}
    extremal = by_method["extremal"]
    assert len(files) == 2
    kept = load_file(files[extremal.configuration].parent / "000001-cat.safetensors")
    assert kept["masks"].shape == (1, 2, 1, 64, 64)
    assert kept["saliency"].shape == (1, 1, 64, 64)
    assert extremal.curve["areas"] == [0.1, 0.3]
    assert extremal.curve["input_score"] == pytest.approx([extremal.score], rel=1e-4)
    assert by_method["centre"].curve is None


def test_coco_and_its_areas(folder, tmp_path):
    pytest.importorskip("pycocotools")
    root = make_coco(tmp_path / "coco")
    command = arguments(folder, tmp_path / "out", f"--root={root}", "--steps=1",
                        "--dataset=coco2014", weights="imagenet.pt",
                        methods="extremal")  # fmt: skip
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    (row,) = read(tmp_path / "out").rows.values()
    assert (row.image, row.label) == ("COCO_val2014_000000000007", "dog")
    assert row.curve["areas"] == [0.018, 0.025, 0.05, 0.1]


def test_a_bad_image_is_named_skipped_and_tried_again(run, tmp_path):
    root = make_voc(tmp_path / "bad", many(4))
    images = root / "VOCdevkit/VOC2007/JPEGImages"
    good = (images / "000002.jpg").read_bytes()
    (images / "000002.jpg").write_bytes(good[:300])
    done = run(root=root)
    content = read(tmp_path / "out")
    assert {row.image for row in content.rows.values()} == {
        "000001", "000003", "000004",
    }  # fmt: skip
    assert {(it.image, it.label) for it in content.failures} == {("000002", "")}
    assert "3 failed:" in done.stderr
    assert re.search(r"^  000002 \(centre\): \w+Error: ", done.stderr, re.M)
    (images / "000002.jpg").write_bytes(good)
    done = run(root=root)
    assert "failed" not in done.stderr
    content = read(tmp_path / "out")
    assert content.failures == []
    assert len(content.rows) == 3 * (4 + 2)


def flawed_voc(path):
    """Two images: a cat and a broken dog; half a dog, and one that is whole."""
    root = make_voc(path, {"000001": [], "000002": []})

    def write(first, second):
        base = root / "VOCdevkit/VOC2007/Annotations"
        for name, objects in (("000001", first), ("000002", second)):
            text = f"<annotation>{''.join(objects)}</annotation>"
            (base / f"{name}.xml").write_text(text)

    cat, dog = voc_object("cat", "21 1 40 32"), voc_object("dog", "1 1 4 32")
    bad, other = voc_object("dog", "9 9 1 1"), voc_object("dog", "9 9 30 30")
    write([cat, bad], [dog, bad])
    return root, lambda: write([cat, other], [dog, other])


def flaw_lines(text):
    lines = text.splitlines()
    (head,) = [n for n, line in enumerate(lines) if line.endswith("of objects:")]
    return lines[head:]


def test_flaws_are_named_at_the_end_of_each_run_and_in_the_report(run, tmp_path):
    root, _ = flawed_voc(tmp_path / "voc")
    end = ": the box ends before it begins, [9.0, 9.0, 1.0, 1.0]: left out"
    expected = [
        "2 flaws in records of objects:",
        f"  000001, dog, object 2 of Annotations/000001.xml{end}",
        f"  000002, dog, object 2 of Annotations/000002.xml{end}",
    ]
    assert flaw_lines(run(root=root).stderr) == expected
    before = read(tmp_path / "out")
    assert {row.key[1:] for row in before.rows.values()} == {
        ("000001", "cat"), ("000002", "dog"),
    }  # fmt: skip
    assert before.failures == []
    # Nothing is done again, and all is said again: also when nothing is to be done.
    assert flaw_lines(run(root=root).stderr) == expected
    after = read(tmp_path / "out")
    assert after.rows == before.rows  # the seconds, too
    assert after.flaws == before.flaws
    done = CliRunner().invoke(main, ["report", str(tmp_path / "out")])
    assert flaw_lines(done.stderr) == expected
    assert flaw_lines(run("--images=1", root=root).stderr) == [
        "1 flaw in records of objects:", expected[1],
    ]  # fmt: skip


def test_what_is_mended_is_played_and_judged_again(run, tmp_path):
    root, mend = flawed_voc(tmp_path / "voc")
    run(root=root, methods="centre")
    before = {row.key[1:]: row for row in read(tmp_path / "out").rows.values()}
    assert before["000002", "dog"].inside == 0.0
    mend()
    assert "flaws" not in run(root=root, methods="centre").stderr
    content = read(tmp_path / "out")
    rows = {row.key[1:]: row for row in content.rows.values()}
    assert set(rows) == {("000001", "cat"), ("000001", "dog"), ("000002", "dog")}
    assert rows["000001", "cat"] == before["000001", "cat"]  # the seconds, too
    assert rows["000002", "dog"].inside == 1.0  # on the box that was lost
    assert content.flaws == {}
    run(root=root, methods="centre")
    assert read(tmp_path / "out") == content


def test_the_row_of_the_last_reading_counts_whatever_file_it_lies_in(tmp_path):
    key = ("c", "a", "dog")

    def written(rank, hit, lines):
        row = Row(*key, "ig", 0, False, 1.0, 0.5, 0, 0, hit, hit, 0.5, None, 2.0)
        with writing(tmp_path, rank) as writer:
            writer.add(row)
            if lines is not None:
                writer.flaw(key, lines)

    for rank, hit, lines in ((1, 0.1, ["lost"]), (0, 0.2, None)):
        written(rank, hit, lines)
    content = read(tmp_path)
    assert (content.rows[key].hit, content.flaws) == (0.1, {key: ["lost"]})
    written(2, 0.3, [])
    content = read(tmp_path)
    assert (content.rows[key].hit, content.flaws) == (0.3, {})
    written(0, 0.4, ["lost", "too"])
    content = read(tmp_path)
    assert (content.rows[key].hit, content.flaws) == (0.4, {key: ["lost", "too"]})


def test_a_folder_of_before_there_were_flaws(run, tmp_path):
    run(methods="centre")
    before = read(tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out/rank-00000.sqlite")) as database:
        database.execute("DROP TABLE flaws")
    assert read(tmp_path / "out") == before


def test_when_all_objects_are_lost_the_first_is_named(folder, tmp_path):
    root = make_voc(tmp_path / "voc", {"000001": []})
    bad = voc_object("dog", "9 9 1 x")
    file = root / "VOCdevkit/VOC2007/Annotations/000001.xml"
    file.write_text(f"<annotation>{bad}</annotation>")
    command = arguments(folder, tmp_path / "out", root=root, methods="centre")
    for done in (
        CliRunner().invoke(main, command),
        CliRunner().invoke(main, ["report", str(tmp_path / "out")]),
    ):
        assert done.exit_code == 2
        assert "000001, dog, object 1 of Annotations/000001.xml: ymax" in done.stderr


def test_flaws_of_a_reader_of_ones_own_that_no_file_could_hold(tmp_path):
    mask = torch.ones(SIZE, dtype=torch.bool)

    def own(image):
        flaw = Flaw("object \udce9", "dax", "a \ud800: left out")
        return Example(image, picture(0), {"dog": mask}, {"dog": False}, (flaw,))

    content = run_plan(plan_of(classifier(), "a", read=own), tmp_path)
    (lines,) = content.flaws.values()
    assert lines == [r"object \udce9: a \ud800: left out"]


def test_a_method_that_fails_is_named_and_the_others_go_on(run, tmp_path, monkeypatch):
    def build(model, options):
        def explain(inputs, target):
            if int(target) == 7:
                raise RuntimeError("no cats")
            return methods.Explained(inputs[:, :1])

        return explain

    monkeypatch.setitem(methods.METHODS, "gradient", methods.Method(build))
    done = run(methods="gradient,centre")
    assert "3 failed:" in done.stderr
    assert "  000003, cat (gradient): RuntimeError: no cats" in done.stderr
    content = read(tmp_path / "out")
    assert len(content.rows) == 6 + 9
    with monkeypatch.context() as patch:  # mended
        patch.setitem(methods.METHODS, "gradient", methods.METHODS["centre"])
        done = run(methods="gradient,centre")
    assert "failed" not in done.stderr
    assert len(read(tmp_path / "out").rows) == 9 + 9


def test_rows_depend_on_the_normalisation_and_the_solver_but_not_on_an_order():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 20)).eval()
    pairs = [Pair("a", "dog", 3), Pair("b", "cat", 4)]

    def of(method="extremal", pairs=pairs, **preprocess):
        images = ImageSet("voc2007", ["a"], read=None)
        prepared = Preprocess(crop=(8, 8), **preprocess)
        return Plan(images, model, prepared, (method,), pairs=pairs)

    usual = of().configurations["extremal"]
    assert of(pairs=pairs[::-1]).configurations["extremal"] == usual
    for change in ({"mean": (0.0,) * 3}, {"std": (9.0,) * 3}):
        assert of(**change).configurations["extremal"] != usual
    assert of(interpolation="nearest").configurations["extremal"] != usual
    arguments = of().settings["extremal"]["method"]["arguments"]
    assert repr(LevelSetSolver()) in arguments
    assert "sigma_max" in str(of("extremal-paper").settings)


@pytest.mark.parametrize("side", [40, 64, 224, 300])
def test_a_single_high_pixel_is_found_in_an_image_of_any_size(side):
    """A map that shrinks must not lose it between the pixels that are sampled."""
    saliency = torch.zeros(1, 1, 224, 224)
    saliency[0, 0, 111, 61] = 1
    place = (111.5 / 224 * side, 61.5 / 224 * side)
    objects = torch.zeros(side, side, dtype=torch.bool)
    objects[int(place[0]), int(place[1])] = True
    judged = runner._judge(saliency, objects)
    assert judged.hit == 1
    assert abs(judged.row + 0.5 - place[0]) <= 1
    assert abs(judged.column + 0.5 - place[1]) <= 1


def plan_of(model, *images, read=None, **options):
    images = ImageSet("voc2007", list(images), read)
    return Plan(images, model, Preprocess(crop=(8, 8)), ("centre",), **options)


def classifier():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 20)).eval()


def test_a_double_model_and_a_class_that_it_does_not_know(tmp_path):
    def read(image):
        mask = torch.ones(8, 8, dtype=torch.bool)
        picture = Image.new("RGB", (8, 8), "red")
        return Example(image, picture, {"dog": mask, "dax": mask}, {"dog": 0, "dax": 0})

    content = run_plan(plan_of(classifier().double(), "a", read=read), tmp_path)
    assert content.failures == []
    assert [row.label for row in content.rows.values()] == ["dog"]


def test_a_digest_takes_all_of_a_state():
    class Counted(torch.nn.Linear):
        count = 3

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    model = Counted(2, 2)
    before = runner.digest_of(model)
    assert runner.digest_of(model) == before
    model.count = 4
    assert runner.digest_of(model) != before


def test_bad_plans():
    with pytest.raises(ValueError, match="limit must be at least 1, got -1"):
        plan_of(classifier(), "a", limit=-1)
    with pytest.raises(
        ValueError, match=r"images must have names of text, got 'a\\udcff'"
    ):
        plan_of(classifier(), "b", "a\udcff")


def test_a_model_in_training_mode_is_refused():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Identity().eval())
    images = ImageSet("voc2007", ["a"], read=print)
    with pytest.raises(ValueError, match=r"evaluation mode \(model.eval\(\)\)"):
        Plan(images, model, Preprocess(), ("centre",))


def test_a_model_of_one_size_cannot_keep_proportions():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 6, 20)
    ).eval()
    images = ImageSet("voc2007", ["a"], read=None)
    plan = Plan(images, model, Preprocess(crop=(8, 6)), ("centre",), resize="shorter")
    with pytest.raises(ValueError, match="must take images of 8 x 8 pixels, got mat1"):
        run_plan(plan, "never made")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--methods=ig,magic", "method must be 'centre' or"),
        ("--areas=0.1,2", "'--areas': areas must be numbers in (0, 1], sep"),
        ("--layer=nothing", "layer must name a module of the model, got 'nothing'"),
        ("--difficult=no.json", "difficult must be a JSON file, got no.json"),
        ("--dataset=coco2014", "root of coco2014 must hold annotations"),
        ("--seed=-1", "seed must be at least 0, got -1"),
        ("--size=1", "model must take images of 1 x 1 pixels"),
    ],
)
def test_an_error_comes_before_any_work(folder, tmp_path, option, text):
    command = arguments(folder, tmp_path / "out", option)
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_pairs_that_were_not_played_are_named(run, tmp_path):
    pairs = tmp_path / "pairs.json"
    pairs.write_text('[["000001", "dog"], ["nope", "cat"], ["000001", "train"]]')
    done = run(f"--pairs={pairs}", methods="centre")
    assert "\n2 of --pairs not played" in done.stderr
    assert done.stderr.endswith("the first is nope, cat\n")
    pairs.write_text('[["000001", "dog"]]')
    assert "not played" not in run(f"--pairs={pairs}", methods="centre").stderr


def test_nothing_to_play_says_why(folder, tmp_path):
    def error_of(*more, **places):
        command = arguments(folder, tmp_path / "out", *more, methods="centre", **places)
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2
        return done.stderr

    pairs = tmp_path / "pairs.json"
    pairs.write_text('[["000001", "train"]]')
    assert "no pair could be played: there must be" in error_of(f"--pairs={pairs}")
    root = make_voc(tmp_path / "none", {})
    (root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_text("")
    assert "--root must hold images of voc2007, got none" in error_of(root=root)
    root = make_voc(tmp_path / "bad", many(1))
    (file,) = root.glob("VOCdevkit/VOC2007/JPEGImages/*.jpg")
    file.write_bytes(b"")
    assert "no image could be played" in error_of(root=root)
    done = CliRunner().invoke(main, ["report", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr.startswith("captum-extremal: all 1 failed, the first is ")


def test_a_report_of_nothing(tmp_path):
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr == "captum-extremal: report needs results, got none\n"


# --- several processes, and their end at any moment ---


def test_killed_and_started_again_with_two_ranks(folder, tmp_path, run):
    """kill -9 in the middle of an image; the rest by two ranks under gloo."""
    output = tmp_path / "killed"
    process = start(folder, output, slow=0.15)
    deadline = time.monotonic() + 60
    while len(read(output).rows) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    partly = read(output)
    assert 8 <= len(partly.rows) < 3 * 9
    port = free_port()
    ranks = [start(folder, output, rank, 2, port) for rank in range(2)]
    outputs = [end(process) for process in ranks]
    assert outputs[1] == ""  # the first rank reports
    run(output="whole")
    whole, killed = read(tmp_path / "whole"), read(output)
    assert values(killed) == values(whole)
    assert killed.done == whole.done
    # What was there was not done again, and no one wrote to another's file.
    assert {key: row.seconds for key, row in partly.rows.items()} == {
        key: killed.rows[key].seconds for key in partly.rows
    }
    shares = []
    for number in range(2):
        (file,) = output.glob(f"rank-{number:05d}.sqlite")
        alone = tmp_path / f"alone{number}"
        alone.mkdir()
        (alone / file.name).write_bytes(file.read_bytes())
        shares.append(set(read(alone).rows))
    assert shares[0] & shares[1] == set()
    assert len(shares[1]) > 0
    report = CliRunner().invoke(main, ["report", str(tmp_path / "whole")]).stdout
    assert without_times(outputs[0]) == without_times(report)
