"""How Sphinx makes the site of these pages and of the docstrings: `make docs`, and every warning is an error."""

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
html_copy_source = html_show_sphinx = html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
exclude_patterns = ["extensions", "static"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "docstrings",
    "entries",
    "mathml",
    "names",
    "notebook",
    "signatures",
]
suppress_warnings = ["config.cache"]  # of the extensions here, which Sphinx cannot pickle
html_math_renderer = "mathml"
myst_heading_anchors = 3

# In the docstrings a single backtick is code; `names` makes a link of what is a public name.
default_role = "literal"
smartquotes = False  # padding="reflect" is code to be copied
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # shapes stand in the signature, as they are typed
napoleon_use_ivar = True  # the attributes of a class are a list, as the arguments of a function are
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
