"""Where things stand."""

from __future__ import annotations

from pathlib import Path

#: The repository.
ROOT = Path(__file__).parent.parent.parent
