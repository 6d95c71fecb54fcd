"""Sphinx: the pages of this folder and the API from the docstrings -> HTML."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import captum_extremal

sys.path.insert(0, str(Path(__file__).parent))
import gallery

project = "captum_extremal"
author = "captum_extremal contributors"
project_copyright = author
version = release = captum_extremal.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx-mathjax-offline",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
# Nothing is fetched by a reader's browser: MathJax comes along with the pages.
exclude_patterns = ["_build", "tutorials/*.ipynb", "tutorials/*.py"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", "Convention"]
default_role = "code"

# The tutorials are executed; a page and a notebook are made of each. What has not
# changed since the last build is not executed again.
sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "tutorials",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "image_scrapers": ("gallery.last_picture",),
    "ignore_repr_types": r"matplotlib\.figure\.Figure|PIL\.",
    "reset_modules": (),
    "first_notebook_cell": "%matplotlib inline",
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"captum_extremal {release}"
html_show_sphinx = False


def escape_stars(
    _app: object,
    _what: str,
    _name: str,
    _obj: object,
    _options: object,
    lines: list[str],
) -> None:
    """Keep reStructuredText from reading ``(N, C, *S)`` as the start of an emphasis."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[place] = re.sub(r"(?<![\\`])\*(?=(S|s|points|size)\b)", r"\\*", line)


def setup(app: Sphinx) -> None:
    """Connect what is to happen before napoleon and after sphinx-gallery."""
    app.connect("autodoc-process-docstring", escape_stars, priority=400)
    app.connect("builder-inited", gallery.execute_notebooks, priority=900)
