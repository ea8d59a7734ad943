"""Who may ask, and who may change what is served."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest

from lipdeploy.serve import App, auth
from lipdeploy.serve.binding import Binding, settle
from tests.serve.conftest import CLASSIFIER, Client, Serve, json_request

KEY, SECOND, ADMIN = "k" * 20, "s" * 20, "a" * 20
INFER = "/v2/models/net/infer"
LOAD = "/v2/repository/models/net/load"
ROWS = json_request([[1.0, 2.0, 3.0, 4.0]])


@pytest.fixture
def locked(serve: Serve) -> Client:
    return serve({"net": CLASSIFIER}, api_keys=(KEY, SECOND), admin_keys=(ADMIN,))


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"},
     {"x_api_key": KEY[:-1]}, {"x_api_key": KEY + " "}, {"x_api_key": ""}, {"authorization": "Bearer"},
     {"authorization": "Bearer wrong", "x_api_key": KEY}],
)  # fmt: skip
def test_without_a_key_nothing_but_health(locked: Client, headers: dict[str, str]) -> None:
    for path in ("/v2", "/v2/models/net", "/metrics", "/openapi.json", "/v2/models/net/ready"):
        reply = locked.get(path, **headers)
        assert (reply.status, bool(reply.error)) == (401, True)
        assert reply.headers["www-authenticate"] == "Bearer"
    assert locked.post(INFER, ROWS, **headers).status == 401
    assert locked.get("/v2/health/live", **headers).status == 200
    assert locked.get("/v2/health/ready", **headers).status == 200


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {SECOND}"}, {"x_api_key": SECOND}]
)
def test_with_a_key(locked: Client, headers: dict[str, str]) -> None:
    assert locked.post(INFER, ROWS, **headers).status == 200
    assert locked.post(LOAD, **headers).status == 401  # asking is not changing
    assert locked.post("/v2/repository/index", **headers).status == 200


def test_the_admin_key_changes(locked: Client) -> None:
    assert locked.post(LOAD, x_api_key=ADMIN).status == 200
    assert locked.post("/v2/repository/models/net/unload", x_api_key=ADMIN).status == 200
    assert locked.get("/metrics", x_api_key=ADMIN).status == 200


def test_where_changing_is_off_no_key_turns_it_on(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER}, admin=False, admin_keys=(ADMIN,))
    assert client.post(LOAD, x_api_key=ADMIN).status == 403
    assert client.post(INFER, ROWS).status == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of many keys costs as many comparisons as the last, by the function made for it."""
    compared: list[tuple[bytes, bytes]] = []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", counting)
    keys = auth.Keys([KEY, SECOND, ADMIN])
    for key in (KEY, ADMIN, "nobody's"):
        compared.clear()
        keys.accept(key.encode())
        assert len(compared) == 3
        assert all(len(one) == len(other) == hashlib.sha256().digest_size for one, other in compared)


@pytest.mark.parametrize(
    ("host", "admin_port", "admin_keys", "offered"),
    [("127.0.0.1", None, (), True), ("::1", None, (), True), ("localhost", None, (), True),
     ("0.0.0.0", None, (), False), ("10.1.2.3", None, (), False), ("0.0.0.0", 8001, (), True),
     ("0.0.0.0", None, (ADMIN,), True)],
)  # fmt: skip
def test_load_and_unload_are_not_for_strangers(
    serve: Serve, host: str, admin_port: int | None, admin_keys: Any, offered: bool
) -> None:
    client = serve({"net": CLASSIFIER})
    settings = replace(client.app.service.settings, admin_keys=admin_keys)
    settings = settle(settings, Binding(host=host, admin_port=admin_port))
    assert settings.admin == offered
    client.app.service.settings = settings
    if not offered:
        reply = client.post(LOAD)
        assert (reply.status, "--admin-key-file" in reply.error) == (403, True)


def test_an_admin_port_divides_the_routes(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER})
    service = client.app.service
    client.app = App(service, "public")
    assert (client.post(LOAD).status, client.post(INFER, ROWS).status) == (404, 200)
    client.app = App(service, "admin")
    assert (client.post(LOAD).status, client.post(INFER, ROWS).status) == (200, 404)
