"""Sphinx settings; the build needs no network and treats warnings as errors."""

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the checkout, whatever else is installed

# Tutorials run at build time: on the CPU, and with the compile cache of the tests.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache/jax/docs"))

project = "lowrank"
author = "the lowrank authors"
copyright = f"2026, {author}"  # noqa: A001
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
]
exclude_patterns = ["_build", "skeleton", "**.ipynb_checkpoints"]
default_role = "literal"
add_module_names = False
toc_object_entries = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# As prose: else `Trainable: ...` in its first line would be read as a type.
napoleon_custom_sections = ["Returns"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 60
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "furo"
html_title = "lowrank"
