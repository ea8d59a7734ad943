"""Verified before ready, and replaced only by something that was verified too."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipdeploy.errors import InputError
from lipdeploy.serve import create_app, model_sources, models
from lipdeploy.serve.settings import read_keys
from tests.serve.conftest import CLASSIFIER, UNKNOWN, Client, Serve, json_request, write

ROWS = [[1.0, 0.5, -0.25, 2.0]]
OTHER = CLASSIFIER.replace("b = {0.25, 0.0, -0.5}", "b = {-9.0, -9.0, 9.0}")  # class 2, not 1
INFER = "/v2/models/net/infer"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Verification stands still until this is set."""
    event, build = threading.Event(), models.CertifiedSession

    def slow(*words: Any, **options: Any) -> Any:
        assert event.wait(20)
        return build(*words, **options)

    monkeypatch.setattr(models, "CertifiedSession", slow)
    return event


def until(client: Client, status: int, path: str = "/v2/health/ready") -> Any:
    """Ask until the answer has this status."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        reply = client.get(path)
        if reply.status == status:
            return reply
        time.sleep(0.01)
    raise AssertionError(reply)


def test_live_at_once_ready_when_verified(serve: Serve, held: threading.Event) -> None:
    client = serve({"net": CLASSIFIER, "second": CLASSIFIER}, wait=False)
    assert client.get("/v2/health/live").status == 200
    state = client.get("/v2/health/ready")
    assert state.status == 503
    assert (state.json["ready"], state.json["progress"]) == (False, 0.0)
    assert "model 'net' version 1: " in state.json["reason"]
    assert state.json["error"] == state.json["reason"]
    assert state.headers["retry-after"] == "1"
    reply = client.post(INFER, json_request(ROWS))
    assert (reply.status, "not ready" in reply.error) == (503, True)
    assert client.get("/v2/models/net/ready").status == 503
    assert client.post("/v2/repository/index", {}).json[0]["state"] == "LOADING"
    held.set()
    assert until(client, 200).json == {"ready": True}
    assert client.post(INFER, json_request(ROWS)).status == 200


def test_progress_is_that_of_the_proofs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    build, told, go = models.CertifiedSession, threading.Event(), threading.Event()

    def slow(*words: Any, watch: Any, **options: Any) -> Any:
        watch("dense", 0.5)
        told.set()
        assert go.wait(20)
        return build(*words, watch=watch, **options)

    monkeypatch.setattr(models, "CertifiedSession", slow)
    client = serve({"net": CLASSIFIER, "second": CLASSIFIER}, wait=False)
    client.get("/v2/health/live")  # verification begins with the first request
    assert told.wait(20)
    state = client.get("/v2/health/ready").json
    assert state["progress"] == 0.25  # half of the first of two
    assert "verifying, 50% done, at node 'dense'" in state["reason"]
    assert "50% done" in state["models"][0]["reason"]
    go.set()
    assert until(client, 200).json == {"ready": True}


@pytest.mark.parametrize(
    ("text", "settings", "phrase"),
    [(UNKNOWN, {}, "Det3"), (CLASSIFIER, {"max_lipschitz": 0.01}, "exceeds"), ("junk", {}, "not an ONNX model")],
    ids=["refused", "above the limit", "unreadable"],
)
def test_a_model_that_fails_never_answers(serve: Serve, tmp_path: Path, text: str, settings: Any, phrase: str) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"junk") if text == "junk" else write(bad, text)
    good = [] if settings else [write(tmp_path / "net.onnx", CLASSIFIER)]
    client = serve([*good, bad], **settings)
    state = client.get("/v2/health/ready")
    assert (state.status, phrase in state.json["reason"]) == (503, True)
    assert client.get("/v2/models/bad/ready").status == 503
    reply = client.post("/v2/models/bad/infer", json_request(ROWS))
    assert (reply.status, phrase in reply.error) == (503, True)
    index = {entry["name"]: entry for entry in client.post("/v2/repository/index").json}
    assert (index["bad"]["state"], phrase in index["bad"]["reason"]) == ("UNAVAILABLE", True)
    if good:  # its neighbour is not harmed
        assert client.post(INFER, json_request(ROWS)).status == 200
        ready = client.post("/v2/repository/index", {"ready": True}).json
        assert [entry["name"] for entry in ready] == ["net"]


def test_a_changed_file_beside_its_certificate_is_not_served(serve: Serve, tmp_path: Path) -> None:
    from lipdeploy.verify import verify
    from lipdeploy.verify.certificate import certificate_path

    path = write(tmp_path / "net.onnx", CLASSIFIER)
    verify(path).write_certificate(certificate_path(path))
    write(path, OTHER)
    client = serve([path])
    assert client.get("/v2/health/ready").status == 503
    assert client.post(INFER, json_request(ROWS)).status == 503


def test_reload_verifies_then_swaps(serve: Serve, tmp_path: Path) -> None:
    client = serve({"net": CLASSIFIER})
    before = client.post(INFER, json_request(ROWS)).json["parameters"]["lipdeploy_certificate_sha256"]
    write(tmp_path / "net.onnx", OTHER)
    assert client.post(INFER, json_request(ROWS)).json["parameters"]["lipdeploy_certificate_sha256"] == before
    assert client.post("/v2/repository/models/net/load").status == 200
    after = client.post(INFER, json_request(ROWS))
    assert after.json["parameters"]["lipdeploy_certificate_sha256"] != before
    assert after.tensors()["label"].tolist() == [2]
    pinned = json_request(ROWS, parameters={"lipdeploy_require_certificate": before})
    assert client.post(INFER, pinned).status == 409
    text = client.get("/metrics").body.decode()
    assert text.count("lipdeploy_certificate_info{") == 1
    assert before not in text


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was proven."""
    proven, build = [], models.CertifiedSession

    def counted(path: Path, **options: Any) -> Any:
        proven.append(path)
        return build(path, **options)

    monkeypatch.setattr(models, "CertifiedSession", counted)
    return proven


def test_what_did_not_change_is_not_proven_again(serve: Serve, tmp_path: Path, proofs: list[Path]) -> None:
    write(tmp_path / "net" / "1" / "model.onnx", CLASSIFIER)
    client = serve([tmp_path / "net"])
    answering = client.app.service.repository.model("net", "1")
    write(tmp_path / "net" / "2" / "model.onnx", OTHER)
    for _ in range(2):
        assert client.post("/v2/repository/models/net/load").status == 200
    assert [path.parent.name for path in proofs] == ["1", "2"]
    assert client.app.service.repository.model("net", "1") is answering
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "2"
    assert client.post("/v2/repository/models/net/unload").status == 200  # keeps nothing
    assert client.post("/v2/repository/models/net/load").status == 200
    assert len(proofs) == 4


def test_a_certificate_that_came_or_changed_is_checked(serve: Serve, tmp_path: Path, proofs: list[Path]) -> None:
    """It may bring a smaller bound, and one that does not fit is no reason to go on as before."""
    from lipdeploy.verify import verify
    from lipdeploy.verify.certificate import certificate_path

    path = write(tmp_path / "net.onnx", CLASSIFIER)
    client = serve([path])
    beside = certificate_path(path)
    verify(path).write_certificate(beside)
    for count in (2, 2):
        assert client.post("/v2/repository/models/net/load").status == 200
        assert len(proofs) == count
    beside.write_text(beside.read_text().replace("lipschitz_bound", "lipschitz"))
    reply = client.post("/v2/repository/models/net/load")
    assert (reply.status, "certificate" in reply.error, len(proofs)) == (400, True, 3)
    assert "still the old one" in client.post("/v2/repository/index").json[0]["reason"]


def test_loads_that_come_during_a_proof_do_not_begin_it_anew(
    serve: Serve, tmp_path: Path, proofs: list[Path], held: threading.Event
) -> None:
    """Else loads more frequent than a proof would keep a model from ever being ready."""
    held.set()
    client = serve({"net": CLASSIFIER})
    held.clear()
    write(tmp_path / "net.onnx", OTHER)
    order = "/v2/repository/models/net/load"
    loads = [asyncio.run_coroutine_threadsafe(client.requested("POST", order), client.loop) for _ in range(3)]
    time.sleep(0.2)
    held.set()
    assert [load.result(20).status for load in loads] == [200] * 3
    assert client.post(INFER, json_request(ROWS)).tensors()["label"].tolist() == [2]
    assert len(proofs) == 2
    assert all(slot.spare is None for slot in client.app.service.repository.slot_list())


def test_a_reload_that_fails_leaves_the_old_one(serve: Serve, tmp_path: Path) -> None:
    client = serve({"net": CLASSIFIER})
    before = client.post(INFER, json_request(ROWS)).body
    for text in (UNKNOWN, None):
        (tmp_path / "net.onnx").unlink() if text is None else write(tmp_path / "net.onnx", text)
        assert client.post("/v2/repository/models/net/load").status == 400
        assert client.post(INFER, json_request(ROWS)).body == before
        assert client.get("/v2/health/ready").status == 200
        assert "still the old one" in client.post("/v2/repository/index").json[0]["reason"]


def test_the_old_one_answers_while_the_new_one_is_verified(serve: Serve, tmp_path: Path, held: threading.Event) -> None:
    held.set()
    client = serve({"net": CLASSIFIER})
    held.clear()
    write(tmp_path / "net.onnx", OTHER)
    loading = asyncio.run_coroutine_threadsafe(client.requested("POST", "/v2/repository/models/net/load"), client.loop)
    for _ in range(20):
        assert client.post(INFER, json_request(ROWS)).tensors()["label"].tolist() == [1]
    assert not loading.done()
    held.set()
    assert loading.result(20).status == 200
    assert client.post(INFER, json_request(ROWS)).tensors()["label"].tolist() == [2]


def test_an_unload_while_it_is_verified_wins(serve: Serve, held: threading.Event) -> None:
    client = serve({"net": CLASSIFIER}, wait=False)
    assert client.get("/v2/health/ready").status == 503
    assert client.post("/v2/repository/models/net/unload").status == 200
    held.set()
    client.do(_loaded(client))
    assert client.post(INFER, json_request(ROWS)).status == 503
    assert client.post("/v2/repository/index").json[0]["reason"] == "unloaded"


async def _loaded(client: Client) -> None:
    await client.app.service.start()


def test_requests_in_flight_are_answered_by_whom_they_reached(serve: Serve, tmp_path: Path) -> None:
    """A swap between a request's arrival and its batch: no error, and label and digest belong together."""
    client = serve({"net": CLASSIFIER}, inline_seconds=0.0)

    async def play() -> list[Any]:
        asked = [asyncio.ensure_future(client.requested("POST", INFER, BODY)) for _ in range(50)]
        await asyncio.sleep(0)
        write(tmp_path / "net.onnx", OTHER)
        await client.app.service.repository.load("net")
        asked += [asyncio.ensure_future(client.requested("POST", INFER, BODY)) for _ in range(50)]
        client.app.service.repository.unload("net")
        return list(await asyncio.gather(*asked))

    BODY = json.dumps(json_request(ROWS)).encode()
    first = client.post(INFER, BODY).json["parameters"]["lipdeploy_certificate_sha256"]
    replies = client.do(play())
    seen = set()
    for reply in replies[:50]:
        assert reply.status == 200
        old = reply.json["parameters"]["lipdeploy_certificate_sha256"] == first
        assert reply.tensors()["label"].tolist() == [1 if old else 2]
        seen.add(old)
    assert seen == {True}
    assert {reply.status for reply in replies[50:]} == {503}  # they came after the unload


@pytest.mark.parametrize("inline_seconds", [0.0, 1.0], ids=["on a thread", "on the loop"])
def test_what_was_replaced_or_unloaded_is_freed_at_once(serve: Serve, tmp_path: Path, inline_seconds: float) -> None:
    """Not when the old generation is collected next: on a quiet server its weights would stay for hours."""
    client = serve({"net": CLASSIFIER}, inline_seconds=inline_seconds)

    def answering() -> weakref.ref[Any]:
        assert client.post(INFER, json_request(ROWS)).status == 200
        return weakref.ref(client.app.service.repository.model("net", None))

    gc.collect()
    gc.disable()
    try:
        for change in ("load", "unload"):
            model = answering()
            write(tmp_path / "net.onnx", OTHER)
            assert client.post(f"/v2/repository/models/net/{change}").status == 200
            deadline = time.monotonic() + 5
            while model() is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert model() is None, change
    finally:
        gc.enable()


def test_unload_and_load_again(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER, "second": CLASSIFIER})
    assert client.post("/v2/repository/models/net/unload", b'{"parameters":{"unload_dependents":false}}').status == 200
    reply = client.post(INFER, json_request(ROWS))
    assert (reply.status, "unloaded" in reply.error) == (503, True)
    assert client.get("/v2/health/ready").status == 200  # wanted, so no reason to restart the process
    assert client.post("/v2/repository/models/net/load").status == 200
    assert client.post(INFER, json_request(ROWS)).status == 200
    assert client.post("/v2/repository/models/other/load").status == 404


def test_versions(serve: Serve, tmp_path: Path) -> None:
    write(tmp_path / "net" / "1" / "model.onnx", CLASSIFIER)
    write(tmp_path / "net" / "10" / "model.onnx", OTHER)
    client = serve([tmp_path / "net"])
    assert client.get("/v2/models/net").json["versions"] == ["1", "10"]
    for path, version, label in (
        (INFER, "10", 2), ("/v2/models/net/versions/1/infer", "1", 1), ("/v2/models/net/versions/10/infer", "10", 2)
    ):  # fmt: skip
        answer = client.post(path, json_request(ROWS))
        assert (answer.json["model_version"], answer.tensors()["label"].tolist()) == (version, [label])
    write(tmp_path / "net" / "11" / "model.onnx", CLASSIFIER)  # comes, while another one goes
    shutil.rmtree(tmp_path / "net" / "1")
    assert client.post("/v2/repository/models/net/load").status == 200
    assert client.get("/v2/models/net").json["versions"] == ["10", "11"]
    assert client.post("/v2/models/net/versions/1/infer", json_request(ROWS)).status == 404
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "11"


def test_one_of_several_outputs(serve: Serve, tmp_path: Path) -> None:
    outputs = CLASSIFIER.replace("(float[N, 3] y)", "(float[N, 3] y, float[N, 3] other)")
    write(tmp_path / "net.onnx", outputs.rstrip().rstrip("}") + "other = Neg (y) }")
    without = serve([tmp_path / "net.onnx"], wait=False)
    while "LIP016" not in without.get("/v2/health/ready").json["reason"]:
        time.sleep(0.01)
    chosen = serve([tmp_path / "net.onnx"], output_name="other")
    assert chosen.post(INFER, json_request(ROWS)).tensors()["label"].tolist() == [2]


@pytest.mark.parametrize("unloaded", [False, True])
def test_a_folder_without_versions_brings_none_into_being(serve: Serve, tmp_path: Path, unloaded: bool) -> None:
    write(tmp_path / "net" / "5" / "model.onnx", CLASSIFIER)
    client = serve([tmp_path / "net"])
    if unloaded:
        client.post("/v2/repository/models/net/unload")
    shutil.rmtree(tmp_path / "net" / "5")
    reply = client.post("/v2/repository/models/net/load")
    assert (reply.status, "no version" in reply.error) == (400, True)
    (entry,) = client.post("/v2/repository/index").json
    assert (entry["version"], "no version" in entry["reason"]) == ("5", True)
    assert entry["state"] == ("UNAVAILABLE" if unloaded else "READY")
    assert client.get("/v2/models/net/versions/1/ready").status == 404
    assert client.post(INFER, json_request(ROWS)).status == (503 if unloaded else 200)


def test_the_newest_version_that_is_ready_answers(serve: Serve, tmp_path: Path) -> None:
    write(tmp_path / "net" / "1" / "model.onnx", CLASSIFIER)
    write(tmp_path / "net" / "2" / "model.onnx", UNKNOWN)
    client = serve([tmp_path / "net"])
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "1"
    assert client.get("/v2/models/net/versions/2/ready").status == 503
    assert client.get("/v2/health/ready").status == 200  # the model answers
    index = {entry["version"]: entry for entry in client.post("/v2/repository/index").json}
    assert (index["2"]["state"], "Det3" in index["2"]["reason"]) == ("UNAVAILABLE", True)


def test_a_new_version_takes_nothing_out_of_readiness(serve: Serve, tmp_path: Path, held: threading.Event) -> None:
    held.set()
    write(tmp_path / "net" / "1" / "model.onnx", CLASSIFIER)
    client = serve([tmp_path / "net"])
    held.clear()
    write(tmp_path / "net" / "2" / "model.onnx", OTHER)
    loading = asyncio.run_coroutine_threadsafe(client.requested("POST", "/v2/repository/models/net/load"), client.loop)
    until(client, 503, "/v2/models/net/versions/2/ready")  # it is known, and being verified
    assert client.get("/v2/health/ready").status == 200
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "1"
    held.set()
    assert loading.result(20).status == 200
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "2"
    (tmp_path / "net" / "3").mkdir()
    (tmp_path / "net" / "3" / "model.onnx").write_bytes(b"half of a mod")
    assert client.post("/v2/repository/models/net/load").status == 400
    assert client.get("/v2/health/ready").status == 200
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "2"


def test_of_several_versions_the_newest_is_verified_first(serve: Serve, tmp_path: Path, held: threading.Event) -> None:
    write(tmp_path / "net" / "1" / "model.onnx", CLASSIFIER)
    write(tmp_path / "net" / "2" / "model.onnx", OTHER)
    client = serve([tmp_path / "net"], wait=False)
    client.get("/v2/health/live")
    until(client, 503, "/v2/models/net/versions/2/ready")
    index = {entry["version"]: entry for entry in client.post("/v2/repository/index").json}
    assert (index["1"]["reason"], "verifying" in index["2"]["reason"]) == ("waiting to be verified", True)
    held.set()
    until(client, 200)
    assert client.post(INFER, json_request(ROWS)).json["model_version"] == "2"
    until(client, 200, "/v2/models/net/versions/1/ready")


def test_words_for_models(tmp_path: Path) -> None:
    file = write(tmp_path / "net.onnx", CLASSIFIER)
    write(tmp_path / "zoo" / "a" / "1" / "model.onnx", CLASSIFIER)
    write(tmp_path / "zoo" / "b" / "2" / "model.onnx", CLASSIFIER)
    assert [source.name for source in model_sources([file, f"other={file}", tmp_path / "zoo"])] == [
        "net", "other", "a", "b",
    ]  # fmt: skip
    assert model_sources([file], "renamed")[0].name == "renamed"
    empty = tmp_path / "zoo" / "a" / "1"  # a version's folder is neither a model nor a repository
    for words, name in (([], None), (["nowhere.onnx"], None), ([file, file], "x"), ([empty], None), ([file], "a/b"),
                        ([file], "../x"), ([file], "")):  # fmt: skip
        with pytest.raises(InputError):
            model_sources(words, name)
    with pytest.raises(InputError, match="two models are called net"):
        create_app([file, file])


def test_a_quota_is_429(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER}, max_client_rows=3)

    async def play() -> list[Any]:
        body = json.dumps(json_request(np.zeros((2, 4)))).encode()
        return list(await asyncio.gather(*(client.requested("POST", INFER, body) for _ in range(2))))

    for _ in range(5):  # what was answered no longer counts
        first, second = client.do(play())
        assert (first.status, second.status, second.headers["retry-after"]) == (200, 429, "1")
        assert "at most 3" in second.error
        assert client.post(INFER, json_request(np.zeros((3, 4)))).status == 200


@pytest.mark.parametrize(("client_rows", "queue_rows"), [(3, 64), (64, 3)])
def test_more_rows_than_could_ever_wait_are_413(serve: Serve, client_rows: int, queue_rows: int) -> None:
    """Waiting does not help, so nothing says that it would, however many of the client's rows are waiting already."""
    client = serve({"net": CLASSIFIER}, max_client_rows=client_rows, max_queue_rows=queue_rows)

    async def play() -> list[Any]:
        bodies = [json.dumps(json_request(np.zeros((rows, 4)))).encode() for rows in (3, 63)]
        return list(await asyncio.gather(*(client.requested("POST", INFER, body) for body in bodies)))

    first, second = client.do(play())
    assert (first.status, second.status, "retry-after" in second.headers) == (200, 413, False)
    assert "at most 3" in second.error


def test_a_deadline_is_504(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    run = models.Program.run

    def slow(self: Any, feeds: Any, epsilon: Any) -> Any:
        time.sleep(0.2)
        return run(self, feeds, epsilon)

    client = serve({"net": CLASSIFIER}, inline_seconds=0.0)
    monkeypatch.setattr(models.Program, "run", slow)
    model = client.app.service.repository.model("net", None)
    model.batcher._run = model.program.run
    reply = client.post(INFER, json_request(ROWS, parameters={"timeout": 20_000}))
    assert (reply.status, "deadline" in reply.error) == (504, True)
    assert client.post(INFER, json_request(ROWS, parameters={"timeout": 0})).status == 200


def test_what_fails_inside_stays_inside(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve({"net": CLASSIFIER})
    model = client.app.service.repository.model("net", None)

    def broken(feeds: Any, epsilon: Any) -> Any:
        raise RuntimeError("secret path")

    model.batcher._run = broken
    reply = client.post(INFER, json_request(ROWS))
    assert reply.status == 500
    assert "secret" not in reply.error
    assert any("secret path" in str(record.exc_info) for record in caplog.records)


def test_key_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# two\n\nabcdefghijklmnop\nqrstuvwxyzabcdefgh\n")
    assert read_keys(file) == ("abcdefghijklmnop", "qrstuvwxyzabcdefgh")
    for text in ("", "# none\n", "short\n", "has a blank in the key\n"):
        file.write_text(text)
        with pytest.raises(InputError):
            read_keys(file)
    with pytest.raises(InputError):
        read_keys(tmp_path / "nowhere")


def test_a_folder_that_has_gone_takes_nothing_along(tmp_path: Path, serve: Serve) -> None:
    """A reload between the two halves of a move keeps what answers, under the versions that it had."""
    for version in ("1", "2"):
        write(tmp_path / "net" / version / "model.onnx", CLASSIFIER)
    client = serve([tmp_path / "net"])
    (tmp_path / "net").rename(tmp_path / "away")
    assert "no such file" in client.post("/v2/repository/models/net/load").error
    reply = client.post("/v2/models/net/infer", json_request([[1.0, 0.5, -0.25, 2.0]]))
    assert (reply.status, reply.json["model_version"]) == (200, "2")
    assert client.get("/v2/health/ready").status == 200
    (tmp_path / "away").rename(tmp_path / "net")
    assert client.post("/v2/repository/models/net/load").status == 200
