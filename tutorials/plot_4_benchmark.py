"""
The benchmark on a folder
=========================

The pointing game over a data set: does the maximum of a map lie on the object? Here the
folder is small and made by this script; VOC 2007 and COCO 2014 are played in the same
way.
"""

# %%
# A folder like VOC's
# -------------------
#
# VOC keeps pictures in ``JPEGImages``, boxes in ``Annotations``, and the names of the
# test images in ``ImageSets/Main/test.txt``. We write three pictures: a cat, a
# motorbike, and the cat beside a smaller motorbike. The boxes were drawn by hand.

import tempfile
from pathlib import Path

from PIL import Image
from skimage import data

from captum_extremal.benchmark import Options, Plan, open_images, report, run
from captum_extremal.models import load_model

cat = Image.fromarray(data.chelsea())
motorbike = Image.fromarray(data.stereo_motorcycle()[0])
motorbike = motorbike.resize((600, 400))
both = Image.new("RGB", (751, 300), "grey")
both.paste(cat, (0, 0))
both.paste(motorbike.resize((300, 200)), (451, 100))

cat_box = (28, 1, 361, 300)  # xmin, ymin, xmax, ymax, counted from 1
motorbike_box = (75, 63, 553, 363)
small_box = (451 + 38, 100 + 32, 451 + 276, 100 + 181)
pictures = {
    "000001": (cat, {"cat": cat_box}),
    "000002": (motorbike, {"motorbike": motorbike_box}),
    "000003": (both, {"cat": cat_box, "motorbike": small_box}),
}


def annotation(boxes: dict[str, tuple[int, int, int, int]]) -> str:
    """What VOC's XML says of the objects in a picture."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in boxes.items()
    )
    return f"<annotation>{objects}</annotation>"


temporary = tempfile.TemporaryDirectory()
root = Path(temporary.name)
voc = root / "VOCdevkit" / "VOC2007"
for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
    (voc / folder).mkdir(parents=True)
for name, (picture, boxes) in pictures.items():
    picture.save(voc / "JPEGImages" / f"{name}.jpg")
    (voc / "Annotations" / f"{name}.xml").write_text(annotation(boxes))
(voc / "ImageSets" / "Main" / "test.txt").write_text("\n".join(pictures) + "\n")

both

# %%
# The plan
# --------
#
# The images are squashed to the size of the network's input. A network for ImageNet
# knows several cats and two kinds of motorbikes; attributed is the one with the highest
# score. ``centre`` always points at the middle of the picture and needs no network. Two
# areas and 20 gradients a mask keep the search short; the paper's areas for VOC are
# ``captum_extremal.benchmark.PAPER_AREAS["voc2007"]``.

model, preprocess, _ = load_model("demo")
plan = Plan(
    open_images("voc2007", root),
    model,
    preprocess,
    ("centre", "gradient", "grad-cam", "extremal"),
    model_name="demo",
    options=Options(areas=(0.05, 0.1), steps=20),
)

# %%
# The run
# -------
#
# Each row, a picture, class and method, goes into an SQLite file at once, so that a run
# may end at any moment. The last number is the probability of the class: where the
# network does not see the object, there is little to point at, and
# ``Plan(min_probability=0.3)`` would leave such pairs out.

results = root / "results"
content = run(plan, results)
for row in content.rows.values():
    hit = "hit" if row.hit else "miss"
    print(f"{row.image} {row.label:10} {row.method:9} {hit:5} {row.probability:.2f}")

# %%
# A second run finds that nothing is missing and returns the same rows:

again = run(plan, results)
print(len(again.rows), "rows, the same:", again.rows == content.rows)

# %%
# The table
# ---------
#
# Means over the classes in percent, for all pairs and for the difficult ones: objects
# that cover less than a quarter of a picture with another class in it.

print(report(content).render("text"))

# %%
# The maximum is one pixel. The share of the positive map that lies on the object says
# more about the rest of it. ``centre`` is positive nowhere and has none.

print(report(content, measure="energy").render("text"))

# %%
# Four pairs decide nothing; they show how the tables are made, and the last column what
# each method costs. For a whole data set use the command, which takes the same options
# and shares the images among as many processes as torchrun starts::
#
#     captum-extremal benchmark --dataset voc2007 --root VOC --output results
#
# For pictures that are not laid out like VOC or COCO, ``ImageSet(name, images, read)``
# takes a function that reads one picture by its name.

temporary.cleanup()
