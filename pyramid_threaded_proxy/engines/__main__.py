"""``python -m pyramid_threaded_proxy.engines`` prints the page of what each engine can hold."""

from __future__ import annotations

from pyramid_threaded_proxy.engines.support import table_markdown

if __name__ == "__main__":
    print(table_markdown(), end="")
