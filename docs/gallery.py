"""Tutorials -> pages and executed notebooks: what sphinx-gallery does not do itself.

The figures of this library know nothing of pyplot, so that sphinx-gallery's own scraper
does not see them; and the notebooks that it offers for download hold no output.
"""

from __future__ import annotations

import base64
import json
import re
import textwrap
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from matplotlib.figure import Figure
from PIL.Image import Image
from sphinx.application import Sphinx
from sphinx_gallery.scrapers import figure_rst

_BLOCK = re.compile(r"^\.\. GENERATED FROM PYTHON SOURCE LINES .*$", re.MULTILINE)
_CODE = re.compile(r"^\.\. code-block:: Python$", re.MULTILINE)
_IMAGE = re.compile(r"^\s*\.\. image-sg:: /(\S+)$", re.MULTILINE)
_INDENTED = r"((?:    .*\n|\n)+)"
_PRINTED = re.compile(rf"^ \.\. code-block:: none\n\n{_INDENTED}", re.MULTILINE)
_HTML = re.compile(rf"^\.\. raw:: html\n\n{_INDENTED}", re.MULTILINE)


def last_picture(
    _block: object, variables: dict[str, Any], settings: dict[str, Any]
) -> str:
    """An image scraper: saves the figure or picture that a block ends with."""
    shown = variables["example_globals"].get("___")  # the value of the last expression
    # It stays there while later blocks end with a statement.
    if not isinstance(shown, Figure | Image) or shown is variables.get("last_picture"):
        return ""
    variables["last_picture"] = shown
    path = next(variables["image_path_iterator"])
    shown.savefig(path) if isinstance(shown, Figure) else shown.save(path)
    return str(figure_rst([path], settings["src_dir"]))


def execute_notebooks(app: Sphinx) -> None:
    """Put into each notebook what its cells gave when the page was made.

    The tutorials are not run a second time: text and pictures come from the page.
    """
    for path in sorted(Path(app.srcdir, "tutorials").glob("*.ipynb")):
        page = path.with_suffix(".rst").read_text("utf-8")
        parts = [part for part in _BLOCK.split(page) if _CODE.search(part)]
        found = [_outputs(part, Path(app.srcdir)) for part in parts]
        if not any(found):  # -D plot_gallery=0: nothing was executed
            continue
        notebook = json.loads(path.read_text("utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        cells[0]["execution_count"] = 1  # first_notebook_cell, which gives nothing
        for count, (cell, outputs) in enumerate(zip(cells[1:], found, strict=True), 2):
            cell |= {"execution_count": count, "outputs": outputs}
        path.write_text(json.dumps(notebook, indent=1), "utf-8")
        with ZipFile(path.with_suffix(".zip"), "w") as archive:
            for file in (path, path.with_suffix(".py")):
                archive.write(file, file.name)


def _outputs(part: str, root: Path) -> list[dict[str, Any]]:
    """The outputs of a cell from its part of the page."""
    outputs: list[dict[str, Any]] = []
    for text in _PRINTED.findall(part):
        lines = textwrap.dedent(text).strip("\n") + "\n"
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    shown = [
        {"image/png": base64.b64encode((root / name).read_bytes()).decode()}
        for name in _IMAGE.findall(part)
    ]
    shown += [{"text/html": textwrap.dedent(html)} for html in _HTML.findall(part)]
    outputs += [
        {"output_type": "display_data", "data": data, "metadata": {}} for data in shown
    ]
    return outputs
