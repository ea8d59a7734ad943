"""Rebuilds every generated page; ``--check`` only compares them (used by ``make check``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import docs_api
import docs_cli
import docs_rules

PAGES: tuple[tuple[Path, Callable[[], str]], ...] = (
    (docs_cli.PAGE, docs_cli.page),
    (docs_api.PAGE, docs_api.page),
    (docs_rules.PAGE, docs_rules.page),
)


def main() -> int:
    """Exit code 1 when a page is out of date."""
    stale = [path for path, page in PAGES if not path.exists() or path.read_text(encoding="utf-8") != page()]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path.name} is out of date: run make docs", file=sys.stderr)
        return 1 if stale else 0
    for path, page in PAGES:
        path.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
