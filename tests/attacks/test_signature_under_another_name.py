"""The liar has a signed release and wants its signature to speak for something else.

An old release under a new name, a signature copied beside another model, external data exchanged under a signed graph:
each has an envelope that the key accepts, and none is what was signed under that name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lipdeploy.cli.main import main

GRAPH = """
<ir_version: 9, opset_import: ["": 20]>
net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0.75, 0.0, 0.0, -0.5}> { y = MatMul (x, w) }
"""
SUFFIXES = (".onnx", ".cert.json", ".sig.json")


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, Path]:
    """A signed model with external data, and the public key."""
    model = onnx.parser.parse_model(GRAPH)
    weights = np.array([[0.75, 0.0], [0.0, -0.5]], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "net.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    key, private, public = Ed25519PrivateKey.generate(), tmp_path / "key.pem", tmp_path / "key.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert main(["verify", str(path), "--write-certificate"]) == 0
    assert main(["sign", str(path), "--key", str(private)]) == 0
    assert main(["verify", str(path), "--require-signature", str(public)]) == 0
    return path, public


def test_a_release_under_another_name(released: tuple[Path, Path]) -> None:
    path, public = released
    for suffix in SUFFIXES:
        shutil.copy(path.with_suffix(suffix), path.with_name(f"latest{suffix}"))
    assert main(["verify", str(path.with_name("latest.onnx"))]) == 0  # proven it is
    assert main(["verify", str(path.with_name("latest.onnx")), "--require-signature", str(public)]) == 4


def test_other_weights_under_a_signed_graph(released: tuple[Path, Path]) -> None:
    path, public = released
    data = path.with_name("net.data")
    data.write_bytes((np.frombuffer(data.read_bytes(), np.float32) / 2).tobytes())
    assert main(["verify", str(path), "--write-certificate"]) == 0  # a smaller bound, honestly certified
    assert main(["verify", str(path), "--require-signature", str(public)]) == 4
