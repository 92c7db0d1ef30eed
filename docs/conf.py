"""The site of these pages: sphinx-build -W docs site."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

project = "ldm_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # as GitHub makes them, so that the same links work there and here
autodoc_typehints = "none"  # docstrings say shapes and units, which types do not
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "ldm_jax"
html_show_copyright = False
