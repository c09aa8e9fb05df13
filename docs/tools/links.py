"""Names in backticks lead to where they are explained: settings, what the package exports, and names of Pyramid's."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

from docs.tools.inventories import written

#: An inventory has thousands of names, plain words among them; a build with and one without a network must be the same.
KNOWN = written()
#: Pages whose headings are names; the first that has one is where it leads.
REFERENCES = ("api", "settings")
#: A setting's name alone is too often a plain word, such as `host`: it needs a dot or an underscore to be meant.
_CLEARLY_A_NAME = re.compile(r"[a-z]\w*[._][\w.]+|[A-Z][a-z]+(?:[A-Z][a-z]+)+")


class LinkNames(SphinxPostTransform):
    """Makes a link of each inline literal that is the heading of a reference page, or stands in an inventory."""

    default_priority = 400

    def run(self, **keywords: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            if not isinstance(literal.parent, nodes.reference | nodes.title):
                link = self._own(literal) or self._foreign(literal)
                if link is not None:
                    literal.replace_self(link)

    def _own(self, literal: nodes.literal) -> nodes.reference | None:
        name = literal.astext().removesuffix("()").removeprefix("proxy.routes.NAME.")
        if not _CLEARLY_A_NAME.fullmatch(name):
            return None
        for page in REFERENCES:
            known = self._headings(page)
            place = known.get(name) or known.get(f"proxy.{name}")
            if place is not None and page != self.env.docname:
                return make_refnode(self.app.builder, self.env.docname, page, place, literal.deepcopy(), name)
        return None

    def _foreign(self, literal: nodes.literal) -> nodes.reference | None:
        name = KNOWN.get(literal.astext().removesuffix("()"))
        for names in self.env.intersphinx_inventory.values():
            if name is not None and (item := names.get(name)) is not None:
                return nodes.reference("", "", literal.deepcopy(), internal=False, refuri=item.uri)
        return None

    def _headings(self, page: str) -> dict[str, str]:
        """The anchors of a page by the names that its headings are."""
        found: dict[str, dict[str, str]] = self.env.__dict__.setdefault("_headings_of_references", {})
        if page not in found:
            places = self.env.get_doctree(page) if page in self.env.all_docs else nodes.document(None, None)
            found[page] = {
                re.split(r"[ (]|\.(?:FIELD|OLD)$", literal.astext())[0]: section["ids"][0]
                for section in places.findall(nodes.section)
                for literal in section[0].findall(nodes.literal)
            }
        return found[page]
