"""``python -m benchmarks.loads NAME JSON``: run a load, print what it measured as JSON."""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.machine import raise_descriptor_limit


def main() -> None:
    name, arguments = sys.argv[1:]
    raise_descriptor_limit()
    load = getattr(importlib.import_module(f"benchmarks.loads.{name}"), name)
    print(json.dumps(load(**json.loads(arguments))), flush=True)


if __name__ == "__main__":
    main()
