"""docs/rules.md says what the registry says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_rules", ROOT / "tools" / "docs_rules.py")
    assert spec is not None and spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(), "run make docs"
