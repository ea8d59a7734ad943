"""The examples for frameworks of others, started as their first lines say."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import ROOT, Running, environment, free_ports

EXAMPLES = ROOT / "examples"


def post(url: str, content: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.fixture
def variables(model: Path) -> dict[str, str]:
    found = [str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    return {"MODEL": str(model), "PYTHONPATH": os.pathsep.join(filter(None, found))}


def test_fastapi(variables: dict[str, str], rows: Path, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    python, (port,) = environment("hosts"), free_ports(1)
    command = [str(python), "-m", "uvicorn", "fastapi_app:app", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    server = Running(command, tmp_path / "log", f"{address}/certified/v2/health/ready", **variables)
    try:
        x = np.load(rows)
        labels = post(f"{address}/score", {"rows": x.tolist(), "epsilon": 0.25})["labels"]
        sure = expected["certified"].tolist()
        assert labels == [label if ok else None for label, ok in zip(expected["label"].tolist(), sure, strict=True)]
        assert "finite" in post(f"{address}/score", {"rows": [[1e300] * 6]})["error"]
        tensor = {"name": "input", "shape": [7, 6], "datatype": "FP32", "data": x.ravel().tolist()}
        answer = post(f"{address}/certified/v2/models/net/infer", {"inputs": [tensor]})
        found = {output["name"]: output["data"] for output in answer["outputs"]}
        assert found["label"] == expected["label"].tolist()
    finally:
        server.stop()


def test_litserve(variables: dict[str, str], rows: Path, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    python, (port,) = environment("hosts"), free_ports(1)
    command = [str(python), str(EXAMPLES / "litserve_app.py")]
    address = f"http://127.0.0.1:{port}"
    server = Running(command, tmp_path / "log", f"{address}/health", PORT=str(port), **variables)
    try:
        for row, label, radius in zip(np.load(rows), expected["label"], expected["radius"], strict=True):
            answer = post(f"{address}/predict", {"row": row.tolist()})
            assert answer["label"] == label
            assert answer["certified"] == (answer["radius"] >= 0.1)
            assert 0.0 <= answer["radius"] <= radius * (1 + 1e-4)  # adaptive: never far above what float64 certifies
    finally:
        server.stop()
