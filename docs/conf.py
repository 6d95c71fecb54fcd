"""Sphinx: the pages of this folder and the API from the docstrings -> HTML."""

from __future__ import annotations

import re

import captum_extremal

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
]
# Nothing is fetched by a reader's browser: MathJax comes along with the pages.
exclude_patterns = ["_build"]
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


def setup(app: object) -> None:
    """Before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", escape_stars, priority=400)
