"""Sphinx configuration of the site, built by `make docs`; every warning is an error."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

project = "segjax"
release = version = installed("segjax")
html_title = f"segjax {version}"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["segjax.css"]
html_js_files = ["segjax.js"]
html_copy_source = html_show_sphinx = html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
exclude_patterns = ["extensions", "static"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "config_fields",
    "docstrings",
    "entries",
    "live_pages",
    "mathml",
    "names",
    "notebook",
    "reports",
    "signatures",
    "width",
]
suppress_warnings = [
    "config.cache"
]  # Sphinx cannot pickle the extensions of this folder
html_math_renderer = "mathml"
myst_heading_anchors = 3

# Single backticks in docstrings are code; the extension `names` links public names.
default_role = "literal"
smartquotes = False  # code such as padding="reflect" must stay copyable
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature contains the shapes
napoleon_use_param = False  # one line may be about several arguments
napoleon_use_ivar = True  # attributes are formatted like arguments
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
