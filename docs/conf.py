"""How Sphinx makes a site of the pages (`make docs`). They themselves stay plain Markdown, which any viewer shows."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs.tools import inventories, links, pages  # noqa: E402

project = "pyramid_threaded_proxy"
author = "the authors of pyramid_threaded_proxy"
version = release = version_of(project)
language = "en"

extensions = ["myst_parser", "sphinx.ext.intersphinx", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "tools"]
default_role = "literal"

# Headings have the anchors that GitHub gives them, so that links work in both.
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pyramid_\u200bthreaded_\u200bproxy {release}"  # so that the narrow column can break it
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "

# The first inventory of each that can be had: the project's own where the network lets, else names that stand here.
intersphinx_mapping = inventories.mapping(HERE / "_build" / "inventories")
intersphinx_timeout = 5
intersphinx_disabled_reftypes = ["*"]  # only `docs/tools/links.py` asks


def setup(app: Sphinx) -> None:
    """Ours: tables of contents from the lists of the index, and links for names in backticks."""
    app.connect("source-read", pages.read)
    app.add_post_transform(links.LinkNames)
