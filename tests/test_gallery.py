"""The tutorials' pages and notebooks: `docs/gallery.py` on a small gallery."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("sphinx_gallery")

DOCS = Path(__file__).parents[1] / "docs"

CONF = f"""
import sys
sys.path.insert(0, {str(DOCS)!r})
import gallery
extensions = ["sphinx_gallery.gen_gallery"]
sphinx_gallery_conf = {{
    "examples_dirs": "scripts", "gallery_dirs": "tutorials",
    "image_scrapers": ("gallery.last_picture",), "reset_modules": (),
    "ignore_repr_types": r"matplotlib\\.figure\\.Figure|PIL\\.",
    "first_notebook_cell": "%matplotlib inline",
}}
exclude_patterns = ["scripts", "tutorials/*.ipynb", "tutorials/*.py"]
def setup(app):
    app.connect("builder-inited", gallery.execute_notebooks, priority=900)
"""

SCRIPT = '''"""
A title
=======

Some text.
"""

# %%
# What is printed.

from matplotlib.figure import Figure
from PIL import Image

print("one")
print("  two")

# %%
# A figure, and then nothing.

Figure()

# %%
# No new picture.

number = 3

# %%
# A picture.

Image.new("RGB", (2, 2))

# %%
# HTML.


class Page:
    def _repr_html_(self):
        return "<b>bold\\n\\n  text</b>"


Page()
'''


def build(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", *options, folder, folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "conf.py").write_text(CONF)
    (tmp_path / "index.rst").write_text(
        "Index\n=====\n\n.. toctree::\n\n   tutorials/index\n"
    )
    (tmp_path / "scripts" / "README.rst").write_text("Scripts\n=======\n")
    (tmp_path / "scripts" / "plot_it.py").write_text(SCRIPT)
    return tmp_path


def code_cells(text: str | bytes) -> list[dict]:
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def test_notebooks_hold_what_the_cells_gave(folder: Path) -> None:
    build(folder)
    tutorials = folder / "tutorials"
    text = (tutorials / "plot_it.ipynb").read_text()
    first, printed, figure, nothing, picture, page = code_cells(text)
    assert first["source"] == ["%matplotlib inline"]
    assert [output["text"] for output in printed["outputs"]] == ["one\n  two\n"]
    for cell, number in ((figure, 1), (picture, 2)):
        (output,) = cell["outputs"]
        file = tutorials / "images" / f"sphx_glr_plot_it_{number:03}.png"
        assert base64.b64decode(output["data"]["image/png"]) == file.read_bytes()
    assert nothing["outputs"] == []
    assert "<b>bold\n\n  text</b>" in page["outputs"][0]["data"]["text/html"]
    counts = [cell["execution_count"] for cell in code_cells(text)]
    assert counts == [1, 2, 3, 4, 5, 6]
    with ZipFile(tutorials / "plot_it.zip") as archive:
        assert archive.read("plot_it.ipynb").decode() == text


def test_nothing_is_claimed_of_cells_that_did_not_run(folder: Path) -> None:
    build(folder, "-D", "plot_gallery=0")
    cells = code_cells((folder / "tutorials" / "plot_it.ipynb").read_text())
    assert {cell["execution_count"] for cell in cells} == {None}
    assert not any(cell["outputs"] for cell in cells)
