"""A tiny verified model, the app around it on a loop of its own, and a client that says exactly what it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("orjson")
pytest.importorskip("uvicorn")

from lipdeploy.serve import App, create_app

CLASSIFIER = """
<ir_version: 9, opset_import: ["": 20]>
net (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {0.5, -0.25, 0.125, 0.25, 0.5, -0.5, -0.75, 0.25, 0.5, 0.125, 0.75, -0.25},
 float[3] b = {0.25, 0.0, -0.5}> {
  h = MatMul (x, w)
  y = Add (h, b)
}
"""
DENOISER = """
<ir_version: 9, opset_import: ["": 20]>
net (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] z) { z = Relu (x) }
"""
FIXED_BATCH = CLASSIFIER.replace("[N, ", "[4, ")
UNKNOWN = """
<ir_version: 9, opset_import: ["": 20]>
net (float[N, 2] x) => (float[N, 2] y) { [wobble] y = Det3 (x) }
"""


def write(path: Path, text: str) -> Path:
    """ONNX text as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


@dataclass(frozen=True)
class Reply:
    """What the app sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, or its JSON part where tensors follow."""
        length = self.headers.get("inference-header-content-length")
        return json.loads(self.body if length is None else self.body[: int(length)])

    @property
    def error(self) -> str:
        """The sentence of an answer that is not a success, and nothing else."""
        assert self.status >= 400, self
        assert set(self.json) == {"error"}, self.body
        return str(self.json["error"])

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name, whichever form they have; sizes must add up."""
        kinds = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
        at, found = int(self.headers.get("inference-header-content-length", 0)), {}
        for output in self.json["outputs"]:
            kind = np.dtype(kinds[output["datatype"]])
            if "data" in output:
                found[output["name"]] = np.array(output["data"], kind).reshape(output["shape"])
            else:
                size = output["parameters"]["binary_data_size"]
                raw = np.frombuffer(self.body[at : at + size], kind)
                found[output["name"]], at = raw.reshape(output["shape"]), at + size
        if "inference-header-content-length" in self.headers:
            assert at == len(self.body)
        return found


class Client:
    """Speaks ASGI to an app that runs on a loop of another thread."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, Any], seconds: float = 60.0) -> Any:
        """Run something on the app's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def close(self) -> None:
        """End the loop."""
        self.do(self.app.shutdown())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def get(self, path: str, **headers: str) -> Reply:
        """GET ``path``."""
        return self.request("GET", path, headers=_pairs(headers))

    def post(self, path: str, body: bytes | dict[str, Any] = b"", **headers: str) -> Reply:
        """POST bytes, or an object as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, headers=_pairs(headers))

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = (), pieces: int = 1
    ) -> Reply:
        """One request, its body in ``pieces``."""
        return self.do(self.requested(method, path, body, headers, pieces))

    async def requested(
        self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = (), pieces: int = 1
    ) -> Reply:
        """The same, for use on the loop."""
        step = -(-len(body) // pieces) or 1
        chunks = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
        messages = [
            {"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)}
            for index, chunk in enumerate(chunks)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(), "root_path": "",
            "headers": [(b"host", b"localhost"), *headers], "client": ("127.0.0.1", 1), "http_version": "1.1",
        }  # fmt: skip
        await self.app(scope, receive, send)
        start, *rest = sent
        named = {name.decode(): value.decode() for name, value in start["headers"]}
        data = b"".join(message["body"] for message in rest)
        assert method == "HEAD" or int(named["content-length"]) == len(data)
        return Reply(start["status"], named, data)


def _pairs(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


Serve = Callable[..., Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(models, **settings)``: a client of an app around models (text by name, or paths), ready."""
    clients: list[Client] = []

    def start(models: dict[str, str] | list[Path], *, wait: bool = True, **settings: Any) -> Client:
        if isinstance(models, dict):
            models = [write(tmp_path / f"{name}.onnx", text) for name, text in models.items()]
        clients.append(Client(create_app(models, threads=1, **settings)))
        if wait:
            clients[-1].do(_started(clients[-1].app))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


async def _started(app: App) -> None:
    await app.service.start()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The classifier as ``net``, ready, for tests that change nothing."""
    path = write(tmp_path_factory.mktemp("net") / "net.onnx", CLASSIFIER)
    client = Client(create_app(path, threads=1, max_body_bytes=100_000, max_queue_rows=256))
    client.do(_started(client.app))
    yield client
    client.close()


def json_request(rows: Any, **more: Any) -> dict[str, Any]:
    """An inference request with JSON tensors."""
    x = np.asarray(rows, np.float32)
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}], **more}


def binary_request(rows: Any, **more: Any) -> tuple[bytes, dict[str, str]]:
    """The body and the header of one with binary tensors both ways."""
    x = np.asarray(rows, "<f4")
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    more.setdefault("parameters", {}).setdefault("binary_data_output", True)
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + x.tobytes(), {"inference_header_content_length": str(len(head))}
