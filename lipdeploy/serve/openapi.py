"""The OpenAPI 3.1 document of what this server really does. The one that comes with the protocol cannot be used: its
path templates are malformed, versions are missing, and it knows no errors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lipdeploy.serve.oip import SIZES

Json = dict[str, Any]

_REF = "#/components/schemas/"


@lru_cache(maxsize=16)
def document(surface: str = "all", *, keys: bool = False, admin_keys: bool = False) -> Json:
    """The document for one port: ``surface`` as in ``App``; with ``keys``, everything but health wants one."""
    from lipdeploy.verify import version

    paths: Json = {}
    paths |= _server_paths()
    for path, operations in _model_paths(inference=surface != "admin").items():
        paths[f"/v2/models/{{model}}{path}"] = _with_parameters(operations, "model")
        paths[f"/v2/models/{{model}}/versions/{{version}}{path}"] = _with_parameters(operations, "model", "version")
    if surface != "public":
        for action in ("load", "unload"):
            paths[f"/v2/repository/models/{{model}}/{action}"] = _with_parameters(_change(action), "model")
    if keys or admin_keys:
        _secure(paths, keys, admin_keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lipdeploy: certified predictions behind the Open Inference Protocol v2",
            "version": version(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _named(paths),
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "responses": _responses(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _server_paths() -> Json:
    return {
        "/v2": {"get": _get("server metadata", "ServerMetadata")},
        "/v2/": {"get": _get("server metadata", "ServerMetadata")},
        "/v2/health/live": {"get": _get("the process answers", "Live", key=False)},
        "/healthz": {"get": _get("the process answers", "Live", key=False)},
        "/v2/health/ready": {
            "get": _get("every model is verified", "Ready", key=False, more={"503": "NotReadyServer"})
        },
        "/v2/models/stats": {"get": _get("statistics of all models", "Statistics")},
        "/v2/repository/index": {"post": _post("models and their states", "IndexRequest", "Index", required=False)},
        "/metrics": {
            "get": _operation("Prometheus metrics", {"200": _content("the metrics", "text/plain", {"type": "string"})})
        },
        "/openapi.json": {"get": _get("this document", None)},
    }


def _model_paths(*, inference: bool) -> Json:
    missing = {"404": "Error", "503": "Error"}
    paths: Json = {
        "": {"get": _get("model metadata", "ModelMetadata", more=missing)},
        "/ready": {"get": _get("this model answers", "ModelReady", more={"404": "Error", "503": "NotReadyModel"})},
        "/stats": {"get": _get("statistics", "Statistics", more=missing)},
        "/certificate": {"get": _certificate()},
    }
    if inference:
        paths["/infer"] = {"post": _infer()}
    return paths


def _infer() -> Json:
    octets = {"type": "string", "description": "the JSON part, then the tensors: little-endian, row-major"}
    operation = _post("infer", "InferenceRequest", "InferenceResponse")
    operation["requestBody"]["content"]["application/octet-stream"] = {"schema": octets}
    operation["parameters"] = [{"$ref": "#/components/parameters/HeadLength"}]
    answer = operation["responses"]["200"]
    answer["content"]["application/octet-stream"] = {"schema": octets}
    answer["headers"] = {
        "Inference-Header-Content-Length": {
            "description": "Bytes of the JSON part, where tensors follow it.",
            "schema": {"type": "integer", "minimum": 1},
        }
    }
    for status in ("404", "408", "409", "413", "415", "429", "500", "503", "504"):
        operation["responses"][status] = {"$ref": f"#/components/responses/{_response_name(status)}"}
    return operation


def _certificate() -> Json:
    operation = _get("the certificate that answers rest on", "Certificate", more={"404": "Error", "503": "Error"})
    operation["responses"]["200"]["headers"] = {
        "ETag": {"description": "The certificate's SHA-256.", "schema": {"type": "string"}}
    }
    operation["responses"]["304"] = {"description": "the client has it already"}
    operation["parameters"] = [
        {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}}
    ]
    return operation


def _change(action: str) -> Json:
    operation = _post(f"{action} a model", "ChangeRequest", "Empty", required=False)
    for status in ("401", "403", "404", "413", "415"):
        operation["responses"][status] = {"$ref": f"#/components/responses/{_response_name(status)}"}
    return {"post": operation}


def _get(summary: str, schema: str | None, *, key: bool = True, more: Json | None = None) -> Json:
    answer: Json = {"type": "object"} if schema is None else {"$ref": _REF + schema}
    responses: Json = {"200": _content(summary, "application/json", answer)}
    for status, name in (more or {}).items():
        if name == "Error":
            responses[status] = {"$ref": f"#/components/responses/{_response_name(status)}"}
        else:
            responses[status] = _content("not ready", "application/json", {"$ref": _REF + name})
    operation = _operation(summary, responses)
    return operation if key else operation | {"security": []}


def _post(summary: str, request: str, answer: str, *, required: bool = True) -> Json:
    operation = _operation(summary, {"200": _content(summary, "application/json", {"$ref": _REF + answer})})
    operation["requestBody"] = {
        "required": required,
        "content": {"application/json": {"schema": {"$ref": _REF + request}}},
    }
    for status in ("400", "413", "415"):
        operation["responses"][status] = {"$ref": f"#/components/responses/{_response_name(status)}"}
    return operation


def _operation(summary: str, responses: Json) -> Json:
    return {"summary": summary, "responses": responses}


def _content(description: str, kind: str, schema: Json) -> Json:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _with_parameters(operations: Json, *names: str) -> Json:
    return {**operations, "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names]}


def _secure(paths: Json, keys: bool, admin_keys: bool) -> None:
    for path, operations in paths.items():
        change = path.startswith("/v2/repository/models/")
        for operation in (operations[method] for method in ("get", "post") if method in operations):
            if "security" not in operation and (admin_keys if change and admin_keys else keys):
                operation["security"] = [{"bearer": []}, {"header": []}]
                operation["responses"]["401"] = {"$ref": "#/components/responses/Unauthorized"}


def _named(paths: Json) -> Json:
    """Every operation with an ``operationId`` of its own; ``GET /v2/`` is the same as ``GET /v2``."""
    named: Json = {}
    for path, operations in paths.items():
        named[path] = dict(operations)
        for method in ("get", "post"):
            if method in operations:
                words = [word.strip("{}").replace(".", "_") for word in path.split("/") if word]
                suffix = "_slash" if path.endswith("/") else ""
                named[path][method] = {"operationId": "_".join([method, *words]) + suffix, **operations[method]}
    return named


_STATUSES = {
    "400": ("BadRequest", "the request cannot be understood, or does not fit the model"),
    "401": ("Unauthorized", "a key is missing or unknown"),
    "403": ("Forbidden", "this server does not offer that"),
    "404": ("NotFound", "no such model or version"),
    "408": ("TooSlow", "the body did not arrive in time"),
    "409": ("CertificateChanged", "the request is pinned to another certificate"),
    "413": ("TooLarge", "the body or the batch is larger than this server takes"),
    "415": ("UnsupportedEncoding", "the body is compressed"),
    "429": ("OverQuota", "this client has too much waiting"),
    "500": ("InternalError", "the server failed; its log says more"),
    "503": ("NotReady", "not ready, or overloaded"),
    "504": ("TooLate", "the request's deadline passed"),
}


def _response_name(status: str) -> str:
    return _STATUSES[status][0]


def _responses() -> Json:
    responses: Json = {}
    for status, (name, description) in _STATUSES.items():
        responses[name] = _content(description, "application/json", {"$ref": _REF + "Error"})
        if status in ("429", "503"):
            wait = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
            responses[name]["headers"] = {"Retry-After": wait}
    return responses


def _parameters() -> Json:
    def in_path(name: str, pattern: str) -> Json:
        return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}

    return {
        "model": in_path("model", r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}$"),
        "version": in_path("version", r"^[1-9]\d{0,17}$"),
        "HeadLength": {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "description": "Bytes of the JSON part, where binary tensors follow it; 0: the body is the one tensor.",
            "schema": {"type": "integer", "minimum": 0},
        },
    }


def _schemas() -> Json:
    text, flag, count = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
    whole = {"type": "integer", "minimum": 0, "maximum": 2**40}
    duration = _record({"count": count, "ns": count})
    datatype = {"type": "string", "enum": list(SIZES)}
    parameters = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    described = {"name": text, "datatype": datatype, "shape": {"type": "array", "items": {"type": "integer"}}}
    state = {"type": "string", "enum": ["READY", "LOADING", "UNAVAILABLE"]}
    names = {"type": "string", "minLength": 1}
    data = {"type": "array", "description": "flat or nested, row-major"}
    return {
        "Error": _record({"error": text}),
        "Empty": {"type": "object"},
        "Live": _record({"live": flag}),
        "Ready": _record({"ready": flag}),
        "NotReadyServer": _record(
            {"ready": flag, "error": text, "reason": text, "progress": {"type": "number", "minimum": 0, "maximum": 1}}
        ),
        "NotReadyModel": _record({"name": text, "ready": flag, "error": text}),
        "ServerMetadata": _record({"name": text, "version": text, "extensions": {"type": "array", "items": text}}),
        "ModelReady": _record({"name": text, "ready": flag}),
        "TensorMetadata": _record(described),
        "ModelMetadata": _record(
            {
                "name": text,
                "versions": {"type": "array", "items": text},
                "platform": text,
                "inputs": {"type": "array", "items": {"$ref": _REF + "TensorMetadata"}},
                "outputs": {"type": "array", "items": {"$ref": _REF + "TensorMetadata"}},
                "properties": {"type": "object", "additionalProperties": text},
            }
        ),
        "Parameters": parameters,
        "InputTensor": {
            "type": "object",
            "required": ["name", "datatype", "shape"],
            "properties": {
                "name": names,
                "datatype": datatype,
                "shape": {"type": "array", "items": whole, "maxItems": 16},
                "parameters": {"$ref": _REF + "Parameters"},
                "data": data,
            },
        },
        "RequestedOutput": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": names, "parameters": {"$ref": _REF + "Parameters"}},
        },
        "InferenceRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string", "maxLength": 1024},
                "parameters": {"$ref": _REF + "Parameters"},
                "inputs": {"type": "array", "minItems": 1, "maxItems": 64, "items": {"$ref": _REF + "InputTensor"}},
                "outputs": {"type": "array", "maxItems": 64, "items": {"$ref": _REF + "RequestedOutput"}},
            },
        },
        "OutputTensor": {
            "type": "object",
            "required": ["name", "datatype", "shape"],
            "properties": {**described, "parameters": {"$ref": _REF + "Parameters"}, "data": data},
        },
        "InferenceResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": text,
                "model_version": text,
                "id": text,
                "parameters": {"type": "object", "additionalProperties": text},
                "outputs": {"type": "array", "items": {"$ref": _REF + "OutputTensor"}},
            },
        },
        "IndexRequest": {"type": "object", "properties": {"ready": flag}},
        "Index": {"type": "array", "items": _record({"name": text, "version": text, "state": state, "reason": text})},
        "ChangeRequest": {"type": "object", "properties": {"parameters": {"type": "object", "maxProperties": 0}}},
        "Statistics": _record({"model_stats": {"type": "array", "items": {"$ref": _REF + "ModelStatistics"}}}),
        "ModelStatistics": _record(
            {
                "name": text,
                "version": text,
                "last_inference": count,
                "inference_count": count,
                "execution_count": count,
                "inference_stats": {"type": "object", "additionalProperties": duration},
                "batch_stats": {"type": "array", "items": {"type": "object"}},
            }
        ),
        "Certificate": {
            "type": "object",
            "required": ["schema", "model", "statement", "nodes", "assumptions"],
            "properties": {"schema": {"const": "lipdeploy/certificate/v1"}},
        },
    }


def _record(properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}
