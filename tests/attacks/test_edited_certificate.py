"""The liar edits the certificate: a smaller bound, or two bounds under one key.

JSON parsers disagree about duplicate keys: one reader sees the large number and is content, another takes the small
one. Unknown keys, duplicate keys and claims below what is proven are all status "integrity". Every number of the
statement is tried in tests/verify/test_certificate.py.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from lipdeploy.verify import verify
from tests.verify.models import model


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model("g (float[N, 2] x) => (float[N, 2] y) <float[2] c = {3, 4}> { y = Mul(x, c) }"), path)
    verify(path).write_certificate(tmp_path / "model.cert.json")
    return tmp_path / "model.cert.json"


@pytest.mark.parametrize(
    ("old", "new", "phrase"),
    [
        ('"lipschitz_bound": "4.', '"lipschitz_bound": "3.', "one number"),
        ('"lipschitz_bound_hex": "0x1', '"lipschitz_bound_hex": "0x0', "one number"),
        ('"norm": "l2"', '"norm": "l2", "lipschitz_bound": "1"', "duplicate key 'lipschitz_bound'"),
        ('"norm": "l2"', '"norm": "l2", "safe": true', "unknown or missing keys"),
    ],
)
def test_the_edit_is_noticed(certificate: Path, old: str, new: str, phrase: str) -> None:
    text = certificate.read_text()
    assert old in text
    certificate.write_text(text.replace(old, new, 1))
    verdict = verify(certificate.with_name("model.onnx"))
    assert verdict.status == "integrity"
    assert phrase in verdict.refusals[0].message
