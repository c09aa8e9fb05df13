"""The page ``docs/settings.md``, made of the table."""

from __future__ import annotations

from pyramid_threaded_proxy.settings.keys import Key
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS

_INTRODUCTION = """\
# Settings

<!-- Made by `python -m pyramid_threaded_proxy.settings > docs/settings.md`; edit `settings/table.py` instead. -->

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
"""

_COLUMNS = "| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n"


def reference_markdown() -> str:
    """The page ``docs/settings.md``."""
    local = ", ".join(f"`{key.path}`" for key in ROUTE_KEYS if not key.fetch)
    return (
        f"{_INTRODUCTION}\n## Process-wide: `proxy.…`\n\n{_COLUMNS}"
        + "".join(map(_row, PROCESS_KEYS))
        + f"\n## Each route: `proxy.routes.NAME.…`\n\n{_COLUMNS}"
        + "".join(map(_row, ROUTE_KEYS))
        + f"\n`request.proxy_fetch` and `request.proxy_forward` take the keys of a route, but not {local}.\n"
    )


def _row(key: Key) -> str:
    default = f"`{key.default}`" if key.default else key.unset
    cells = (f"`{key.path}{f'.{key.name}' if key.names else ''}`", default, key.allowed, key.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
