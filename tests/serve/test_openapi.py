"""The OpenAPI document: well-formed, and true of every answer that the server gives."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest

from lipdeploy.serve import openapi, routes
from tests.serve.conftest import CLASSIFIER, Client, Reply, Serve, binary_request, json_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]
METHODS = ("get", "post")


@pytest.fixture(scope="module")
def document(net: Client) -> Any:
    reply = net.get("/openapi.json")
    assert reply.status == 200
    return reply.json


def resolved(document: Any, node: Any) -> Any:
    """``node``, or what its reference points to; a reference to nothing fails here."""
    while "$ref" in node:
        assert node["$ref"].startswith("#/")
        target = document
        for word in node["$ref"][2:].split("/"):
            target = target[word]
        node = target
    return node


def walk(node: Any) -> Any:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, m, item[m]) for path, item in document["paths"].items() for m in METHODS if m in item]


def test_the_document_is_openapi(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    for node in walk(document):
        if isinstance(node, dict) and "$ref" in node:
            resolved(document, node)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for path, item in document["paths"].items():
        variables = set(re.findall(r"{(\w+)}", path))
        declared = [resolved(document, p) for p in item.get("parameters", [])]
        assert {p["name"] for p in declared if p["in"] == "path"} == variables
        assert all(p["required"] for p in declared)
    for _, _, operation in operations(document):
        assert all(re.fullmatch(r"[1-5]\d\d", status) for status in operation["responses"])
        assert all(resolved(document, response)["description"] for response in operation["responses"].values())


def test_every_route_is_described_and_every_description_is_a_route(document: Any) -> None:
    described = {
        (path.replace("{model}", "net").replace("{version}", "1"), method) for path, method, _ in operations(document)
    }
    for path, method in described:
        found = routes.route(path)
        assert found is not None and method.upper() in found.methods, (method, path)
    for path, found in routes.PLAIN.items():
        assert (path, found.methods[0].lower()) in described
    for action, (_, methods) in routes.MODEL_ROUTES.items():
        for base in ("/v2/models/net", "/v2/models/net/versions/1"):
            assert (base + (f"/{action}" if action else ""), methods[0].lower()) in described
    for action in routes.ADMIN_ROUTES:
        assert (f"/v2/repository/models/net/{action}", "post") in described


def check(document: Any, path: str, method: str, reply: Reply) -> None:
    """``reply`` is one that the document foresees for the operation at ``path``."""
    operation = document["paths"][path][method]
    assert str(reply.status) in operation["responses"], (path, reply.status)
    response = resolved(document, operation["responses"][str(reply.status)])
    if reply.status == 304:
        return
    kind = reply.headers["content-type"].split(";")[0]
    assert kind in response["content"], (path, kind)
    if kind == "application/json":
        schema = {**response["content"][kind]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(reply.json)


def test_answers_are_as_described(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER})
    document = client.get("/openapi.json").json
    for path, method, _ in operations(document):
        if path.endswith("load"):
            continue
        for name, version in (("net", "1"), ("other", "1"), ("net", "7")):
            real = path.replace("{model}", name).replace("{version}", version)
            if method == "get":
                check(document, path, method, client.get(real))
            elif path.endswith("/infer"):
                body, headers = binary_request(ROWS)
                for reply in (client.post(real, json_request(ROWS, id="a")), client.post(real, body, **headers),
                              client.post(real, b"{"), client.post(real, b"", content_encoding="gzip"),
                              client.post(real, b"", content_length="1" * 12)):  # fmt: skip
                    check(document, path, method, reply)
            else:
                check(document, path, method, client.post(real))
    for action in ("unload", "load"):
        path = f"/v2/repository/models/{{model}}/{action}"
        for name in ("net", "other"):
            check(document, path, "post", client.post(path.replace("{model}", name)))
        check(document, path, "post", client.post(path.replace("{model}", "net"), b"["))
    tag = client.get("/v2/models/net/certificate").headers["etag"]
    path = "/v2/models/{model}/certificate"
    check(document, path, "get", client.get(path.replace("{model}", "net"), if_none_match=tag))


def test_answers_before_ready_are_as_described(serve: Serve) -> None:
    client = serve({"net": CLASSIFIER}, max_lipschitz=1e-3)
    document = client.get("/openapi.json").json
    for path in (
        "/v2/health/ready",
        "/v2/models/{model}/ready",
        "/v2/models/{model}",
        "/v2/models/{model}/certificate",
    ):
        reply = client.get(path.replace("{model}", "net"))
        assert reply.status == 503
        check(document, path, "get", reply)
    reply = client.post("/v2/models/net/infer", json_request(ROWS))
    check(document, "/v2/models/{model}/infer", "post", reply)
    check(document, "/v2/repository/models/{model}/load", "post", client.post("/v2/repository/models/net/load"))


def test_our_own_requests_are_as_described(document: Any) -> None:
    schema = {"$ref": "#/components/schemas/InferenceRequest", "components": document["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(
        json_request(ROWS, id="a", outputs=[{"name": "label"}], parameters={"lipdeploy_epsilon": "1/255"})
    )
    for wrong in ({}, {"inputs": []}, {"inputs": [{"name": "x"}]}, json_request(ROWS, id=7)):
        assert not validator.is_valid(wrong)


def test_keys_are_described() -> None:
    locked = openapi.document("all", keys=True, admin_keys=True)
    for path, _, operation in operations(locked):
        health = path in ("/healthz", "/v2/health/live", "/v2/health/ready")
        assert bool(operation["security"]) != health
        assert ("401" in operation["responses"]) != health
    public = openapi.document("public")
    assert not any(path.endswith("load") for path in public["paths"])
    assert not any(path.endswith("/infer") for path in openapi.document("admin")["paths"])
