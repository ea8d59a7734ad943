"""docs/rules.md says what the registry says."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.verify.models import bound

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_rules", ROOT / "tools" / "docs_rules.py")
    assert spec is not None and spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    return pages


def test_the_page_is_up_to_date() -> None:
    pages = generator()
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(), "run make docs"


def cells(operator: str) -> list[str]:
    """The row of one rule."""
    rows = [line.strip("| ").split(" | ") for line in generator().page().splitlines() if line.startswith("| ")]
    return next(row for row in rows if operator in row[0].split(", "))


def test_preconditions_are_those_of_the_code() -> None:
    """Stored inputs and refusals, also those of helpers, as the rules spell them."""
    assert cells("Conv")[2:4] == ["ℓ2, ℓ∞, ℓ1, mixed", "1, 2"]
    assert cells("Div")[2:5][0::2] == [
        "ℓ2, ℓ∞, ℓ1",
        "“divides by an activation”; “divides by a stored zero”; "
        "“a constant of shape … reaches the batch axis of a rank … tensor”",
    ]
    assert cells("Relu")[3:5] == ["none", "–"]
    assert "“the slope tensor is larger than the data”" in cells("PRelu")[4]


def test_norms_are_those_that_the_rules_carry() -> None:
    """What the page calls mixed has an ℓ2 → ℓ∞ gain below the ℓ2 one; a motif in ℓ2 changes no other norm."""
    weight = "<float[2,2] W = {1, 1, 1, 1}>"
    text = f"g (float[N,2] x) => (float y) {weight} {{ y = MatMul(x, W) }}"
    found = [bound(text, norm) for norm in ("l2-linf", "l2", "linf")]
    assert found == pytest.approx([2**0.5, 2.0, 2.0], rel=1e-9)
    residual = f"g (float[N,2] x) => (float y) {weight} {{ h = MatMul(x, W) y = Sub(x, h) }}"
    assert "| ℓ2 |" in next(line for line in generator().page().splitlines() if "**linear_residual**" in line)
    assert [bound(residual, "linf"), bound(residual)] == pytest.approx([3.0, 1.0], rel=1e-9)
