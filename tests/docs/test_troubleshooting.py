"""The page of troubleshooting has every text that is said at start-up, in the log, and in place of an answer."""

from __future__ import annotations

import re

from docs.tools import messages
from pyramid_threaded_proxy.relay.own_answer import _EXPLANATIONS
from tests.support.docs import PAGES
from tests.support.paths import ROOT

PAGE = "troubleshooting.md"
#: Said in `settings/section.py`, where the nearest name is put behind them.
UNKNOWN = {
    "is unknown",
    "is unknown: what stands before its last dot takes one value, not a mapping",
    "belongs to a declared route and is unknown here",
}
#: Handed to `PermissionWithdrawn` in `relay/recheck.py`.
WITHDRAWN = {"the permission could not be asked for again: …"}
#: What is no text in the source but another one's: a fault's, an exception's, or a rule's.
HANDED_ON = {
    "app/prepare.py: error.rule", "relay/own_answer.py: str(error)", "relay/recheck.py: why",
    "relay/relay.py: str(error)",
    "relay/switching.py: str(error)", "relay/upload.py: SPOILED", "settings/agreement.py: str(fault)",
    "settings/load.py: text", "settings/section.py: str(fault)", "settings/section.py: self._unknown(path)",
    "settings/urls.py: str(error)", "settings/values.py: str(error)",
}  # fmt: skip


def told() -> list[str]:
    """The texts on the page; each has a remedy beside it."""
    found = re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGES[PAGE], re.MULTILINE)
    assert all(remedy.strip() for _, remedy in found)
    return [text.replace("\\|", "|") for text, _ in found]


def test_every_text_has_a_remedy() -> None:
    """A text that is missing here gets a row with a remedy, in the table of docs/troubleshooting.md it belongs to."""
    said, _ = messages.collected()
    known = set(told())
    assert [f"{one.place}: {one.text}" for one in said if one.text not in known] == []


def test_no_row_is_for_a_text_that_nobody_says() -> None:
    """A text that changed in the source has its row changed too."""
    said = {one.text for one in messages.collected()[0]} | UNKNOWN | WITHDRAWN | set(_EXPLANATIONS.values())
    assert sorted(set(told()) - said) == []
    assert set(_EXPLANATIONS.values()) <= set(told())
    source = (ROOT / "pyramid_threaded_proxy/settings/section.py").read_text(encoding="utf-8")
    assert all(f'"{text}"' in source for text in UNKNOWN)


def test_what_the_reader_of_the_source_can_t_see_is_known() -> None:
    """A call whose text is put together elsewhere would be left out without a word: each is looked at once."""
    assert set(messages.collected()[1]) - HANDED_ON == set()


def test_the_reader_of_the_source_sees_each_kind() -> None:
    """Names that stand for a text, both sides of a choice, pairs that are yielded, and what is filled in."""
    source = """
NAME = "by name %s"
def check():
    text = f"the value {x!r}"
    log.warning(text, x)
    log.error(NAME, 1)
    raise ValueFault("is too " + ("small" if a else "large"))
    raise UpstreamGone("one" if a else "two")
    yield "key", f"can't be {x}"
    log.error(unknown)
"""
    found, unseen = messages.read(source, "settings/x.py")
    assert [(one.kind, one.text) for one in found] == [
        ("log", "the value …"), ("log", "by name …"), ("start", "is too …"), ("ended", "one"), ("ended", "two"),
        ("start", "can't be …"),
    ]  # fmt: skip
    assert unseen == ["settings/x.py: unknown"]
