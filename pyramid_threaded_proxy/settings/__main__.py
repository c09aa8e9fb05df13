"""Prints the page ``docs/settings.md``."""

from __future__ import annotations

from pyramid_threaded_proxy.settings.reference import reference_markdown

if __name__ == "__main__":
    print(reference_markdown(), end="")
