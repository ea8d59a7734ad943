"""Files that ``make fuzz`` came upon: each as it was found, with the answer that it must get."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from lipdeploy.verify import verify

FOUND = {
    # float[0, 2] x: a batch of no samples, with which shapes that mean "copy" or "empty" would pass for the batch axis
    "no samples": (
        "CAo6PQoNCgF4EgF5IgNOZWc6ABIBZ1oTCgF4Eg4KDAgBEggKAggACgIIAmIUCgF5Eg8KDQgBEgkKAxIBTgoCCAJCBAoAEBQ=",
        "LIP006",
    ),
}


@pytest.mark.parametrize(("data", "code"), FOUND.values(), ids=FOUND)
def test_each_is_refused_by_name(data: str, code: str) -> None:
    for method in ("product", "best"):
        verdict = verify(base64.b64decode(data), method=method, hints=[np.ones(4)])  # type: ignore[arg-type]
        assert verdict.status == "refused" and {refusal.code for refusal in verdict.refusals} == {code}
