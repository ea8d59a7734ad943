"""What ``lipdeploy package`` writes, in the servers it is for."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipdeploy.cli.main import main

from .conftest import EPSILON, ROOT, Check, Running, environment, free_ports, program

ALL = ("label", "radius", "certified", "abstain", "margin", "logits")


def package(kind: str, model: Path, folder: Path, *words: str) -> Path:
    assert main(["package", kind, str(model), "-o", str(folder), *words]) == 0
    return folder


# Triton.


@pytest.fixture(scope="module", params=[(), ("--batching",)], ids=["one by one", "batching"])
def triton(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real tritonserver of nvidia-pytriton's wheel on our repository, as (HTTP, gRPC, batching)."""
    site = next((environment("triton").parents[1] / "lib").glob("python*/site-packages"))
    folder = tmp_path_factory.mktemp("triton")
    repository = package("triton", model, folder / "repository", *request.param)
    _let_it_find(repository / "net" / "1" / "model.py", site)
    backend = folder / "backends" / "python"
    bundled = site / "pytriton" / "tritonserver"
    shutil.copytree(bundled / "backends" / "python", backend)
    shutil.copy(
        bundled / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub", backend
    )
    http, grpc, metrics = free_ports(3)
    command = [str(bundled / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += ["--backend-directory", str(folder / "backends")]
    for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{name}-address", "127.0.0.1", f"--{name}-port", str(port)]
    variables = {"LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"), "PYTHONHOME": sys.base_prefix}
    server = Running(command, folder / "log", f"http://127.0.0.1:{http}/v2/models/net/ready", **variables)
    yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", bool(request.param)
    server.stop()


def _let_it_find(file: Path, site: Path) -> None:
    """pytriton's stub process looks into no environment; in Triton's own image a plain pip install does."""
    file.write_text(f"import sys\n\nsys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]\n" + file.read_text())


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_real_triton_answers_as_the_session(kind: str, triton: Any, rows: Path, agrees: Check) -> None:
    address = triton[0] if kind == "http" else triton[1]
    found = program(environment("client"), "ask_triton.py", kind, address, "net", rows, EPSILON)
    assert found["live"] and found["ready"] and found["model"]
    for answer in found["answers"].values():
        if triton[2]:  # with Triton's batching, one number per row has a second axis
            for name in set(ALL) - {"logits"}:
                assert answer[name]["shape"].pop() == 1
        agrees(answer, ALL)
    assert "answered" not in found["errors"].values()


def test_tritons_protobuf_reads_both_configurations(model: Path, tmp_path: Path) -> None:
    for words in ((), ("--batching",), ("--backend", "onnxruntime"), ("--backend", "onnxruntime", "--batching")):
        folder = package("triton", model, tmp_path / "-".join(("r", *words)), *words)
        config = program(environment("client"), "read_config.py", folder / "net" / "config.pbtxt")
        assert config["name"] == "net"
        assert config["backend"] == ("onnxruntime" if "onnxruntime" in words else "python")
        if "onnxruntime" in words:
            assert config["model_operations"]["op_library_filename"] == ["/models/net/liblipdeploy_ops.so"]
            assert config["optimization"]["graph"]["level"] == 2


# MLServer.


def test_a_real_mlserver_answers_as_the_session(model: Path, rows: Path, agrees: Check, tmp_path: Path) -> None:
    python = environment("mlserver")
    folder = package("mlserver", model, tmp_path / "served")
    http, grpc, metrics = free_ports(3)
    ports = {"MLSERVER_HTTP_PORT": str(http), "MLSERVER_GRPC_PORT": str(grpc), "MLSERVER_METRICS_PORT": str(metrics)}
    url = f"http://127.0.0.1:{http}/v2/models/net"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    server = Running(command, tmp_path / "log", f"{url}/ready", PYTHONPATH=path, **ports)
    try:
        x = np.load(rows)
        tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        content = {"inputs": [tensor], "parameters": {"lipdeploy_epsilon": EPSILON}}
        answer = _post(f"{url}/infer", {**content, "outputs": [{"name": name} for name in ALL]})
        agrees({one["name"]: {"shape": one["shape"], "values": one["data"]} for one in answer["outputs"]}, ALL)
        assert answer["parameters"]["lipdeploy_guarantee"] == "deployed"
        tensor["name"] = "z"
        with pytest.raises(urllib.error.HTTPError) as failure:
            _post(f"{url}/infer", content)
        assert failure.value.code == 400
    finally:
        server.stop()


def _post(url: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


# KServe.


def test_kserves_classes_know_every_field_of_our_manifests(model: Path, tmp_path: Path) -> None:
    folder = package("kserve", model, tmp_path / "k", "--max-lipschitz", "2", "--epsilon", "0.5")
    found = program(environment("kserve"), "read_manifest.py", folder)
    assert found == {
        "serving-runtime.yaml": {"kind": "ServingRuntime", "api": "serving.kserve.io/v1alpha1", "unknown": []},
        "inference-service.yaml": {"kind": "InferenceService", "api": "serving.kserve.io/v1beta1", "unknown": []},
    }
