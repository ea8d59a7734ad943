"""The liar certifies a tame model, then puts other weights into the file and leaves the certificate beside it.

The certificate names the digest of the file's bytes; any other bytes are status "integrity" (exit 4), even when the
new weights have the same norm and only the function is another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.errors import IntegrityError
from lipdeploy.verify import verify
from tests.verify.models import single


@pytest.mark.parametrize("factor", [100.0, -1.0, 1.0 + 2.0**-23])
def test_other_weights_contradict_the_certificate(tmp_path: Path, factor: float) -> None:
    weight = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    path = tmp_path / "model.onnx"
    onnx.save(single("MatMul", (2,), {"W": weight}), path)
    verify(path).write_certificate(tmp_path / "model.cert.json")
    assert verify(path).status == "verified"
    proto = onnx.load(path)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array((weight * factor).astype(np.float32), "W"))
    onnx.save(proto, path)
    verdict = verify(path)
    assert verdict.status == "integrity"
    with pytest.raises(IntegrityError, match="other bytes"):
        verdict.raise_for_status()
