"""From a plain page to one of the site.

The lists of `index.md` are the site's tables of contents, so that a page is named in one place. A page that is in none
of them fails the build, because Sphinx warns of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tests ask for what is said here without Sphinx
    from sphinx.application import Sphinx

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_ENTRY = re.compile(r"^- \[[^\]]*\]\(([\w-]+)\.(?:md|rst)\)", re.MULTILINE)
#: A kind of page, and the list below it.
_KIND = re.compile(r"^## (Learn|Do|Look up|Understand)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Sphinx's `source-read`: the text of a page before it is parsed."""
    if name == "index":
        source[0] += "".join(map(_toctree, _KIND.findall(source[0])))
    source[0] = _LINK.sub(_inside, source[0])


def kinds(index: str) -> dict[str, list[str]]:
    """The names of the pages of each kind, as the index lists them."""
    return {kind: _ENTRY.findall(entries) for kind, entries in _KIND.findall(index)}


def _toctree(kind: tuple[str, str]) -> str:
    caption, entries = kind
    names = "\n".join(_ENTRY.findall(entries))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"


def _inside(link: re.Match[str]) -> str:
    """A link to a file of the repository that is no page: the site has no such file, so its name must do."""
    return f"{link[2]} (`{link[3].removeprefix('../')}` in the repository)" if link[3].startswith("../") else link[0]
