"""Several workers serve the same bytes, or say that they are not ready: each is a service on a loop of its own here."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipdeploy.errors import IntegrityError
from lipdeploy.serve import App, Service, Settings, model_sources
from lipdeploy.serve.agreement import Agreement, Reopened, SharedAgreement, check_same
from lipdeploy.serve.repository import Slot
from tests.serve.conftest import CLASSIFIER, Client, Reply, Serve, json_request, write

workers = pytest.importorskip("lipdeploy.serve.workers", reason="Unix only", exc_type=ImportError)

ROWS = np.array([[1.0, 0.5, -0.25, 2.0]], np.float32)
OTHER = CLASSIFIER.replace("b = {0.25, 0.0, -0.5}", "b = {-9.0, -9.0, 9.0}")
THIRD = CLASSIFIER.replace("b = {0.25, 0.0, -0.5}", "b = {9.0, -9.0, -9.0}")
LABELS = {CLASSIFIER: 1, OTHER: 2, THIRD: 0}
READY, MODEL = "/v2/health/ready", "/v2/models/net"
LOAD, UNLOAD = "/v2/repository/models/net/load", "/v2/repository/models/net/unload"


class Workers:
    """Two workers that talk to one another as those of ``lipdeploy serve --workers 2`` do."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        SharedAgreement.begin(folder)
        self.clients: dict[int, Client] = {}
        self._ears: dict[int, Any] = {}

    def start(self, index: int, *, verify: bool = True) -> Client:
        """Start a worker, or another in its place; it has verified what it can."""
        self.end(index)
        settings = Settings(models=model_sources([self.model]), threads=1)
        client = Client(App(Service(settings, SharedAgreement(self.folder))))
        ear = workers.Talk(client.app.service, self.folder, index, 2).listening()
        client.do(ear.__aenter__())
        self.clients[index], self._ears[index] = client, ear
        if verify:
            self.verify(index)
        return client

    def verify(self, index: int) -> None:
        """Let a worker verify what it can."""

        async def started() -> None:
            await self.clients[index].app.service.start()

        self.clients[index].do(started())

    def end(self, index: int) -> None:
        """End a worker, if there is one."""
        client = self.clients.pop(index, None)
        if client is not None:
            client.do(self._ears.pop(index).__aexit__(None, None, None))
            client.close()

    def ask(self, path: str) -> list[int]:
        """The status that each says to GET."""
        return [self.clients[index].get(path).status for index in (0, 1)]

    def infer(self, version: str = "") -> list[Reply]:
        """What each answers."""
        return [self.clients[index].post(f"{MODEL}{version}/infer", json_request(ROWS)) for index in (0, 1)]

    def labels(self) -> list[int]:
        """The label that each answers; a status where there is none."""
        return [int(reply.tensors()["label"][0]) if reply.status == 200 else reply.status for reply in self.infer()]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Workers]:
    """Two workers in front of one file; the first has verified it."""
    with tempfile.TemporaryDirectory() as folder:  # the path of a Unix socket must be short
        both = Workers(Path(folder), write(tmp_path / "net.onnx", CLASSIFIER))
        both.start(0)
        yield both
        for index in (0, 1):
            both.end(index)


def not_the_same(pair: Workers) -> None:
    """The first serves the classifier, the second nothing, and nobody says ready until the next load."""
    assert pair.labels() == [LABELS[CLASSIFIER], 503]
    assert pair.ask(READY) == pair.ask(f"{MODEL}/ready") == [503, 503]
    for index in (0, 1):
        assert "the workers agreed on" in pair.clients[index].get(READY).json["reason"]
    assert pair.clients[1].post(LOAD).status == 200
    assert pair.labels() == [LABELS[OTHER]] * 2
    assert pair.ask(READY) == pair.ask(f"{MODEL}/ready") == [200, 200]


def test_ready_is_who_listens_once_all_were(pair: Workers) -> None:
    """A worker that is restarted, and verifies while others have the port, takes no requests."""
    paths = (READY, f"{MODEL}/ready")
    assert [pair.clients[0].get(path).status for path in paths] == [503, 503]  # the second is still to come
    second = pair.start(1, verify=False).app.service
    second.listening = False
    assert [pair.clients[0].get(path).status for path in paths] == [503, 503]
    pair.verify(1)
    second.listening = True
    assert pair.ask(READY) == [200, 200]
    second.drain()
    assert pair.ask(READY) == [200, 503]
    second = pair.start(1, verify=False).app.service
    second.listening = False
    assert [pair.clients[0].get(path).status for path in paths] == [200, 200]
    second.listening = True
    assert [pair.clients[0].get(path).status for path in paths] == [503, 503]
    pair.end(1)
    assert [pair.clients[0].get(path).status for path in paths] == [200, 200]


def test_one_model_that_is_ready_is_not_all(pair: Workers) -> None:
    pair.start(1)
    assert pair.clients[0].get(f"{MODEL}/ready").status == 200
    pair.end(1)
    assert pair.clients[0].get(READY).status == 503


def test_a_worker_that_hangs_is_not_ready(pair: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.start(1)
    monkeypatch.setitem(workers.ASK_SECONDS, "ready", 0.2)

    async def never(question: Any) -> Any:
        await asyncio.sleep(1.0)

    monkeypatch.setattr(workers.Talk, "_reply", lambda self, question: never(question))
    assert pair.clients[0].get(READY).status == 503


def test_a_file_that_is_replaced_before_a_worker_is_restarted(pair: Workers, tmp_path: Path) -> None:
    pair.start(1)
    assert pair.labels() == [LABELS[CLASSIFIER]] * 2
    write(tmp_path / "net.onnx", OTHER)
    pair.start(1)
    not_the_same(pair)


def test_a_file_that_is_replaced_between_the_first_reads(pair: Workers, tmp_path: Path) -> None:
    write(tmp_path / "net.onnx", OTHER)
    pair.start(1)
    not_the_same(pair)


def test_a_file_that_is_replaced_between_the_reads_of_a_reload(pair: Workers, tmp_path: Path) -> None:
    pair.start(1)
    first, second = (pair.clients[index].app.service.repository for index in (0, 1))
    built, old = second._built, first.slots["net"]["1"].digest

    async def late(slot: Slot, path: Path | Exception) -> Any:
        while first.slots["net"]["1"].digest == old:
            await asyncio.sleep(0.01)
        write(tmp_path / "net.onnx", THIRD)
        return await built(slot, path)

    second._built = late  # type: ignore[method-assign]
    write(tmp_path / "net.onnx", OTHER)
    assert "the workers agreed on" in pair.clients[0].post(LOAD).error
    assert pair.labels() == [LABELS[OTHER], 503]
    assert pair.ask(READY) == [503, 503]
    second._built = built  # type: ignore[method-assign]
    assert pair.clients[0].post(LOAD).status == 200
    assert pair.labels() == [LABELS[THIRD]] * 2


def test_a_worker_that_is_restarted_knows_what_was_unloaded(pair: Workers) -> None:
    pair.start(1)
    assert pair.clients[0].post(UNLOAD).status == 200
    assert pair.labels() == [503, 503]
    pair.start(0)
    assert pair.labels() == [503, 503]
    pair.start(1)  # now nobody is left who heard of it
    assert pair.labels() == [503, 503]
    assert pair.ask(READY) == [200, 200]
    assert pair.clients[0].post("/v2/repository/index").json[0]["reason"] == "unloaded"
    assert pair.clients[1].post(LOAD).status == 200
    assert pair.labels() == [LABELS[CLASSIFIER]] * 2


def test_a_reload_that_fails_leaves_what_was_agreed(pair: Workers, tmp_path: Path) -> None:
    pair.start(1)
    (tmp_path / "net.onnx").write_bytes(b"junk")
    assert pair.clients[0].post(LOAD).status == 400
    assert pair.labels() == [LABELS[CLASSIFIER]] * 2
    assert pair.ask(READY) == [200, 200]
    pair.start(1)
    assert pair.labels() == [LABELS[CLASSIFIER], 503]
    assert pair.clients[1].post(LOAD).status == 400  # a worker without the model takes it from nobody
    assert pair.labels() == [LABELS[CLASSIFIER], 503]
    assert pair.ask(READY) == [503, 503]
    write(tmp_path / "net.onnx", CLASSIFIER)
    pair.start(1)
    assert pair.labels() == [LABELS[CLASSIFIER]] * 2
    assert pair.ask(READY) == [200, 200]


def test_versions_that_come_and_go_without_a_load(tmp_path: Path, pair: Workers) -> None:
    write(tmp_path / "many" / "net" / "1" / "model.onnx", CLASSIFIER)
    with tempfile.TemporaryDirectory() as folder:
        both = Workers(Path(folder), tmp_path / "many" / "net")
        both.start(0)
        write(tmp_path / "many" / "net" / "2" / "model.onnx", OTHER)
        both.start(1)
        assert both.labels() == [LABELS[CLASSIFIER]] * 2
        assert [reply.status for reply in both.infer("/versions/2")] == [404, 404]
        assert both.clients[1].post(LOAD).status == 200
        assert both.labels() == [LABELS[OTHER]] * 2
        shutil.rmtree(tmp_path / "many" / "net" / "1")
        both.start(0)
        assert both.labels() == [503, LABELS[OTHER]]
        assert both.ask(READY) == [503, 503]
        assert both.clients[0].post(LOAD).status == 200
        assert both.labels() == [LABELS[OTHER]] * 2
        assert [reply.status for reply in both.infer("/versions/1")] == [404, 404]
        for index in (0, 1):
            both.end(index)


def test_readiness_speaks_for_all_on_every_door(pair: Workers) -> None:
    grpc = pytest.importorskip("grpc")
    from lipdeploy.serve import rpc
    from lipdeploy.serve.rpc_messages import METHODS, SERVICE

    door = rpc.listening(pair.clients[0].app.service, "127.0.0.1:0", None, shared=False)
    port = pair.clients[0].do(door.__aenter__())

    def ready(method: str, **fields: str) -> bool:
        request, response = METHODS[method]
        call = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request.SerializeToString, response_deserializer=response.FromString,
        )  # fmt: skip
        return bool(call(request(**fields), timeout=20).ready)

    pair.start(1, verify=False)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert not ready("ServerReady")
        assert not ready("ModelReady", name="net")
        for path in (READY, f"{MODEL}/ready", f"{MODEL}/versions/1/ready"):  # whoever is asked begins to verify
            assert pair.clients[0].get(path).status == 503
        reply = pair.clients[0].get(f"{MODEL}/ready").json
        assert (reply["name"], reply["ready"], "waiting to be verified" in reply["error"]) == ("net", False, True)
        pair.verify(1)
        assert ready("ServerReady")
        assert ready("ModelReady", name="net")
        assert pair.ask(READY) == pair.ask(f"{MODEL}/ready") == pair.ask(f"{MODEL}/versions/1/ready") == [200, 200]
        assert pair.ask("/v2/models/other/ready") == [404, 404]
    pair.clients[0].do(door.__aexit__(None, None, None))


def test_a_load_during_a_load(serve: Serve, tmp_path: Path) -> None:
    """The first answers only when what the second found is there."""
    client = serve({"net": CLASSIFIER})
    repository = client.app.service.repository

    async def play() -> list[Any]:
        first = asyncio.ensure_future(repository.load("net"))
        await asyncio.sleep(0)
        write(tmp_path / "net.onnx", OTHER)
        repository.order("load", "net")
        return await first

    assert client.do(play()) == []
    assert client.post(f"{MODEL}/infer", json_request(ROWS)).tensors()["label"].tolist() == [LABELS[OTHER]]


def test_loads_that_wait_for_one_are_answered_by_it(serve: Serve, tmp_path: Path) -> None:
    """Their files were read after the last of them was ordered; nor does it matter whether the first one waits."""
    client = serve({"net": CLASSIFIER})
    repository = client.app.service.repository
    built, proofs = repository._built, []

    async def counted(slot: Slot, path: Path | Exception) -> Any:
        proofs.append(slot.version)
        await asyncio.sleep(0.05)
        return await built(slot, path)

    repository._built = counted  # type: ignore[method-assign]

    async def play() -> Any:
        given_up = asyncio.ensure_future(repository.load("net"))
        await asyncio.sleep(0.01)
        write(tmp_path / "net.onnx", OTHER)
        given_up.cancel()
        return await asyncio.gather(*(repository.load("net") for _ in range(20)))

    assert client.do(play()) == [[]] * 20
    assert len(proofs) == 2
    assert client.post(f"{MODEL}/infer", json_request(ROWS)).tensors()["label"].tolist() == [LABELS[OTHER]]


def test_a_load_goes_on_when_who_asked_has_gone(serve: Serve, tmp_path: Path) -> None:
    client = serve({"net": CLASSIFIER})
    repository = client.app.service.repository

    async def play() -> None:
        asked = asyncio.ensure_future(repository.load("net"))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(*repository._following)

    write(tmp_path / "net.onnx", OTHER)
    client.do(play())
    assert client.post(f"{MODEL}/infer", json_request(ROWS)).tensors()["label"].tolist() == [LABELS[OTHER]]


def test_a_load_that_one_worker_hears_of_before_the_other_is_done(pair: Workers, tmp_path: Path) -> None:
    """What was read for the first load does not decide the second, which the other worker has begun."""
    pair.start(1)
    slow = pair.clients[1].app.service.repository
    built, read, go_on = slow._built, threading.Event(), threading.Event()

    async def late(slot: Slot, path: Path | Exception) -> Any:
        model = await built(slot, path)
        read.set()
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return model

    slow._built = late  # type: ignore[method-assign]
    write(tmp_path / "net.onnx", OTHER)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pair.clients[1].post, LOAD)
        assert read.wait(20)
        quick = pair.clients[0].app.service.repository
        begun, prove = threading.Event(), quick._built

        async def seen(slot: Slot, path: Path | Exception) -> Any:
            begun.set()
            while not go_on.is_set():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # the other decides first
            return await prove(slot, path)

        quick._built = seen  # type: ignore[method-assign]
        write(tmp_path / "net.onnx", THIRD)
        second = threads.submit(pair.clients[0].post, LOAD)
        assert begun.wait(20)
        go_on.set()
        assert [first.result(20).status, second.result(20).status] == [200, 200]
    assert pair.labels() == [LABELS[THIRD]] * 2
    assert pair.ask(READY) == [200, 200]


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_decides(tmp_path: Path, shared: bool) -> None:
    agreement = SharedAgreement.begin(tmp_path) if shared else Agreement()

    def versions(*found: str) -> list[str]:
        return agreement.versions("net", found, agreement.round("net"))

    def decide(version: str, digest: str | None) -> str | None:
        return agreement.decide("net", version, digest, agreement.round("net"))

    with pytest.raises(Reopened):
        decide("1", "a")
    assert versions("2", "10") == versions("1") == ["2", "10"]
    assert [decide("2", digest) for digest in ("a", "b", None)] == ["a"] * 3
    assert [decide("10", digest) for digest in (None, "a")] == [None] * 2
    agreement.reopen("net")
    assert versions() == ["2", "10"]
    assert [decide("2", digest) for digest in (None, "b")] == ["a"] * 2
    agreement.reopen("net")
    assert versions("10") == ["10"]
    assert decide("10", "c") == "c"
    agreement.unload("net")
    assert agreement.unloaded("net")
    agreement.reopen("net")
    assert not agreement.unloaded("net")
    assert versions("2") == ["2"]
    assert decide("2", None) is None  # what was once retired, or unloaded, is not taken up again


@pytest.mark.parametrize("order", ["reopen", "unload"])
def test_an_old_round_decides_nothing(order: str) -> None:
    agreement = Agreement()
    old = agreement.round("net")
    agreement.versions("net", ["1"], old)
    getattr(agreement, order)("net")
    with pytest.raises(Reopened):
        agreement.versions("net", ["1"], old)
    agreement.versions("net", ["1"], agreement.round("net"))  # somebody else is further
    with pytest.raises(Reopened):
        agreement.decide("net", "1", "a", old)
    assert agreement.decide("net", "1", "b", agreement.round("net")) == "b"


def test_who_decides_at_once_hears_one_decision(tmp_path: Path) -> None:
    def decide(number: int) -> str | None:
        agreement = SharedAgreement(tmp_path)
        agreement.versions("net", ["1"], 0)
        return agreement.decide("net", "1", str(number), 0)

    SharedAgreement.begin(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(decide, range(64)))) == 1


def test_an_agreement_that_is_lost_is_not_made_anew(pair: Workers, tmp_path: Path) -> None:
    """Who serves goes on, and who comes serves nothing: it could be other bytes."""
    pair.start(1)
    (pair.folder / "agreement.json").unlink()
    write(tmp_path / "net.onnx", OTHER)
    assert pair.clients[0].post(LOAD).status == 500
    assert pair.labels() == [LABELS[CLASSIFIER]] * 2
    pair.start(1)
    assert pair.labels() == [LABELS[CLASSIFIER], 503]
    assert pair.ask(READY) == [503, 503]
    assert "cannot be read or written" in pair.clients[0].get(READY).json["reason"]


@pytest.mark.parametrize(
    ("stated", "found", "at"),
    [
        ({"1": "a", "2": "b"}, {"1": "a", "2": "c"}, "net version 2: this node's file is c, not b"),
        ({"1": "a", "2": "b"}, {"1": "a"}, "net version 2: this node's file is missing, not b"),
        ({"1": "a"}, {"1": "a", "2": "b"}, "net version 2: this node's file is b, not missing"),
        ({"1": "a"}, None, "net version 1: this node's file is missing, not a"),
    ],
)
def test_a_node_with_other_versions_is_named(stated: dict[str, str], found: dict[str, str] | None, at: str) -> None:
    """What every replica on Ray compares before it answers: its newest version must be that of all."""
    check_same({"net": stated}, {"net": dict(stated)})
    with pytest.raises(IntegrityError, match=f"^{re.escape(at)}$"):
        check_same({"net": stated}, {} if found is None else {"net": found})
