"""The page ``docs/settings.md``, made of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from pyramid_threaded_proxy.settings.groups import PROCESS_GROUPS, ROUTE_GROUPS, Example, Group
from pyramid_threaded_proxy.settings.keys import Key
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS

_INTRODUCTION = """\
# Settings

<!-- Made by `make docs`; edit `settings/table.py`, `settings/process_table.py` and `settings/groups.py` instead. -->

**One rule: a dotted ini key is the path of the same setting in YAML.** These two say the same:

```ini
proxy.threads = 4
proxy.routes.reports.prefix = /reports
proxy.routes.reports.upstream = http://reports.internal:9000/v2
proxy.routes.reports.permission = view
proxy.routes.reports.methods = GET POST
proxy.routes.reports.request.set.X-User = {userid}
```

```yaml
threads: 4
routes:
  reports:
    prefix: /reports
    upstream: http://reports.internal:9000/v2
    permission: view
    methods: [GET, POST]
    request: {set: {X-User: "{userid}"}}
```

- `proxy.file` names the YAML file. Where both give a setting, ini wins.
- Every mistake is found at start-up, all of them at once.
- Lists are YAML lists, or words with spaces between them. In an ini file `%` is written `%%`.
- Text that YAML would read as something else (`on`, `010`, a date) needs quotes.
- Booleans may also be written `yes`, `no`, `on`, `off`.
- NAME is letters, digits, `_` and `-`. FIELD is the name of a field. It may hold dots, and its case does not matter.
- OLD is a text of a body, in its own case. It may hold dots, and in YAML and Python whatever else. An ini file ends a
  key at its first `:` or `=`.
- Routes are declared in the order of the YAML file, then in that of the ini settings.
- In `config.add_proxy_route(NAME, …)` the same keys are keyword arguments, with `_` for `.`:
  `request_set={"X-User": "{userid}"}`.

In the examples below the route is called `reports`.
"""

#: What YAML reads as it stands: numbers, words, paths and the like.
_PLAIN = re.compile(r"[\w/][\w./-]*(?::[\w/.-]+)*|-\d+")


def reference_markdown() -> str:
    """The page ``docs/settings.md``."""
    local = ", ".join(f"`{key.path}`" for key in ROUTE_KEYS if not key.fetch)
    return (
        f"{_INTRODUCTION}\n"
        + "".join(_groups(PROCESS_GROUPS, PROCESS_KEYS, ""))
        + "## Each route: `proxy.routes.NAME.…`\n\nAll that follows belongs to one route.\n\n"
        + f"`request.proxy_fetch` and `request.proxy_forward` take the keys of a route, but not {local}.\n\n"
        + "".join(_groups(ROUTE_GROUPS, ROUTE_KEYS, "routes.reports."))
    ).rstrip("\n") + "\n"


def _groups(groups: Iterable[Group], keys: Iterable[Key], home: str) -> Iterator[str]:
    rows = {key.path: key for key in keys}
    for group in groups:
        yield f"## {group.title}\n\n{group.text}\n\n| key | default |\n| --- | --- |\n"
        for path in group.examples:
            yield f"| [`{_written(rows[path])}`](#{_anchor(_heading(rows[path], home))}) | {_default(rows[path])} |\n"
        yield "\n"
        for path, example in group.examples.items():
            yield _entry(rows[path], example, home)


def _entry(key: Key, example: Example, home: str) -> str:
    """One key: what it means, what it may be, and how it is written."""
    meaning = key.meaning[0].upper() + key.meaning[1:]
    meaning += "" if meaning.endswith(".") else "."
    facts = f"- Default: {_default(key) or 'none'}\n- Allowed: {key.allowed}\n- Since {key.since}\n"
    lines = {key.path: example} if isinstance(example, str) else example
    ini = "".join(f"proxy.{home}{path} = {value}\n" for path, value in lines.items())
    text = f"### `{_heading(key, home)}`\n\n{meaning}\n\n{facts}\n```ini\n{ini}```\n"
    return f"{text}\n" if key.path == "file" else f"{text}\n```yaml\n{_yaml(lines, home)}```\n\n"


def _written(key: Key) -> str:
    return f"{key.path}.{key.name}" if key.names else key.path


def _heading(key: Key, home: str) -> str:
    """What a process has besides a route begins with ``proxy.``, so that no two headings are the same."""
    return _written(key) if home else f"proxy.{_written(key)}"


def _anchor(heading: str) -> str:
    """Where viewers of Markdown put a heading."""
    return re.sub(r"[^\w-]", "", heading.lower())


def _default(key: Key) -> str:
    return f"`{key.default}`" if key.default else key.unset


def _in_yaml(value: str) -> str:
    """A value; words with spaces between them are a list there."""
    if " " in value and " -> " not in value:
        return f"[{', '.join(map(_in_yaml, value.split()))}]"
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _yaml(lines: dict[str, str], home: str) -> str:
    """The same settings in YAML; a name that a group takes keeps its dots."""
    out: list[str] = []
    above: list[str] = []
    for path, value in lines.items():
        *parts, last = [*home.split(".")[:-1], *path.split(".", 2)]
        same = 0
        while same < min(len(parts), len(above)) and parts[same] == above[same]:
            same += 1
        out += [f"{'  ' * depth}{name}:" for depth, name in enumerate(parts) if depth >= same]
        out.append(f"{'  ' * len(parts)}{last}: {_in_yaml(value)}")
        above = parts
    return "".join(f"{line}\n" for line in out)
