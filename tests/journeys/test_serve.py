"""From a network in PyTorch to certified answers over HTTP: export, serve, ask in JSON and in binary, stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serve.processes import ROOT, Connection, ask, serving, until_ready

NET = """
import torch
from lipdeploy import nn as lip

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        lip.BjorckLinear(64, 32), lip.GroupSort(2),
        lip.BjorckLinear(32, 10),
    )
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a network that was exported as a user would."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("digits")
    (folder / "net.py").write_text(NET)
    words = ["export", "net.py:build", "-o", "digits.onnx", "--input-shape", "1,8,8", "--input-scale", "0.0625"]
    command = [sys.executable, "-m", "lipdeploy", *words]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("certify", ["f64", "adaptive"])
def test_certified_answers_over_http_are_the_sessions(digits: Path, certify: str) -> None:
    from lipdeploy import CertifiedSession

    images = np.random.default_rng(0).integers(0, 17, (12, 1, 8, 8)).astype(np.float32)
    session = CertifiedSession(str(digits / "digits.onnx"), certify=certify, max_lipschitz=1.0)
    epsilon = float(np.median(session.predict(images).radius))
    expected = session.predict(images, epsilon=epsilon)
    with serving("digits.onnx", "--certify", certify, "--max-lipschitz", "1.0", cwd=digits) as server:
        _, port = server.listening()
        assert ask(port, "GET", "/v2/health/live").status == 200
        until_ready(port)
        metadata = ask(port, "GET", "/v2/models/digits").json
        assert metadata["properties"]["lipdeploy_certificate_sha256"] == session.certificate_sha256
        (spec,) = metadata["inputs"]
        assert spec["shape"] == [-1, 1, 8, 8]

        tensor = {"name": spec["name"], "datatype": "FP32", "shape": list(images.shape)}
        parameters = {"lipdeploy_epsilon": repr(epsilon), "lipdeploy_require_certificate": session.certificate_sha256}
        request = {"id": "j", "inputs": [{**tensor, "data": images.tolist()}], "parameters": parameters}
        plain = ask(port, "POST", "/v2/models/digits/infer", json.dumps(request).encode())
        assert plain.status == 200, plain.body
        assert plain.json["parameters"]["lipdeploy_guarantee"] == "deployed"
        outputs = {output["name"]: output["data"] for output in plain.json["outputs"]}
        assert outputs["label"] == expected.label.tolist()
        assert outputs["certified"] == expected.certified.tolist()
        assert 0 < sum(outputs["certified"]) < len(images)
        assert outputs["abstain"] == [not certified for certified in outputs["certified"]]
        assert all(sent <= exact for sent, exact in zip(outputs["radius"], expected.radius, strict=True))
        np.testing.assert_allclose(outputs["radius"], expected.radius, rtol=1e-6)

        head = json.dumps(
            {
                "inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}],
                "parameters": {**parameters, "binary_data_output": True},
                "outputs": [{"name": "radius"}, {"name": "label"}],
            }
        ).encode()
        connection = Connection(port)
        binary = connection.ask(
            "POST", "/v2/models/digits/infer", head + images.tobytes(), Inference_Header_Content_Length=str(len(head))
        )
        assert binary.status == 200, binary.body
        tail = binary.body[int(binary.headers["inference-header-content-length"]) :]
        radius, label = np.frombuffer(tail[:48], "<f4"), np.frombuffer(tail[48:], "<i8")
        assert radius.tolist() == outputs["radius"]
        assert label.tolist() == outputs["label"]

        images[0, 0, 0, 0] = np.nan
        bad = connection.ask(
            "POST", "/v2/models/digits/infer", head + images.tobytes(), Inference_Header_Content_Length=str(len(head))
        )
        assert (bad.status, "NaN" in bad.json["error"]) == (400, True)
        connection.close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
