"""What one row of the tables of settings says, and the words that several rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyramid_threaded_proxy.settings import values

FieldValues = tuple[tuple[str, str], ...]
Hook = str | Callable[..., Any] | None


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table."""

    path: str
    reader: values.Reader
    #: The default as it would be written in ini; None leaves the setting at None, or empty.
    default: str | None
    allowed: str
    meaning: str
    #: Reads the name of the field that stands behind `path`, which is then no setting but a group of them.
    names: Callable[[str], str] | None = None
    #: What the reference calls such a name.
    name: str = "FIELD"
    #: What the reference shows where `default` is None.
    unset: str = ""
    #: Whether `request.proxy_fetch` and `request.proxy_forward` know it.
    fetch: bool = True
    #: The first version that knows it.
    since: str = "1.0"

    @property
    def attribute(self) -> str:
        """The dataclass field, which is also the keyword of ``add_proxy_route()``."""
        return self.path.replace(".", "_")

    def unread(self) -> Any:
        """The value of a setting that nobody gave."""
        if self.default is None:
            return () if self.names else None
        return self.reader(self.default)


DURATION = "seconds (`2.5`), or `250ms`, `30s`, `5m`, `1h`"
SIZE = "bytes, or `64KiB`, `10MiB`, `1GiB`"
BOOLEAN = "true or false"
HOOK = "a dotted name, or in Python a callable"
TEMPLATE = (
    "text with `{userid}`, `{client_addr}`, `{host}`, `{scheme}`, `{route}`, `{request_id}`, `{mount}` "
    "and the pattern's placeholders; `{{` and `}}` for braces"
)
SECRET = "16 or more visible ASCII characters"
FIELDS = "names of fields, but those of framing and connections"
