"""The examples, run as they stand."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lipdeploy.runtime import CertifiedSession
from tests.serve.conftest import CLASSIFIER, json_request, write
from tests.serve.processes import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write(tmp_path / "net.onnx", CLASSIFIER)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["thread_pool", "in_process"])
def test_scripts(name: str, net: Path) -> None:
    words = [sys.executable, str(EXAMPLES / f"{name}.py"), str(net)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "rows certified at 0.01" in done.stdout


def test_a_mounted_app(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("starlette")
    monkeypatch.setenv("MODEL", str(net))
    module = load("mounted")
    rows = np.array([[1.0, 0.5, -0.25, 2.0], [0.0, 0.1, 0.0, 0.0]], np.float32)
    expected = CertifiedSession(net, certify="adaptive").predict(rows, epsilon=0.1)

    async def play() -> None:
        async with module.lifespan(module.app):
            transport = httpx.ASGITransport(app=module.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                while (await client.get("/certified/v2/health/ready")).status_code != 200:
                    await asyncio.sleep(0.01)
                assert (await client.get("/")).json() == {"ready": True}
                reply = await client.post("/certified/v2/models/net/infer", json=json_request(rows))
                outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
                assert outputs["label"] == expected.label.tolist()
                assert outputs["certified"] == expected.certified.tolist()
                assert (await client.get("/certified/nothing")).json().keys() == {"error"}

    asyncio.run(play())


def test_threads_agree_with_one_thread(net: Path) -> None:
    """The same answers, whatever runs beside them."""
    session = CertifiedSession(net, certify="adaptive", threads=1)
    batches = [np.random.default_rng(seed).standard_normal((7, 4)).astype(np.float32) for seed in range(64)]
    together: list[Any] = load("thread_pool").certify_all(session, batches, 0.05)
    for batch, found in zip(batches, together, strict=True):
        alone = session.predict(batch, epsilon=0.05)
        for name in ("label", "radius", "margin", "certified", "logits"):
            assert np.array_equal(getattr(found, name), getattr(alone, name)), name
