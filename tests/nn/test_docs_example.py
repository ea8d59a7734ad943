"""The training example of docs/layers.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layers.md"


def test_the_example_takes_a_step() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert float(names["loss"].detach()) > 0  # type: ignore[attr-defined]
