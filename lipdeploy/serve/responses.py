"""Answers of the REST door, before they meet a connection."""

from __future__ import annotations

from typing import Any

import orjson

from lipdeploy.serve.problems import RequestProblem

Field = tuple[bytes, bytes]
JSON: Field = (b"content-type", b"application/json")
OCTETS: Field = (b"content-type", b"application/octet-stream")


class Response:
    """Status, body and the headers that say what the body is."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: tuple[Field, ...]) -> None:
        self.status, self.body, self.headers = status, body, headers


class WrongMethod(RequestProblem):
    """405, with the methods that the path takes."""

    def __init__(self, methods: tuple[str, ...]) -> None:
        super().__init__(405, f"this path wants {' or '.join(methods)}")
        self.allow = ", ".join(methods).encode()


def json_response(content: Any, status: int = 200, *headers: Field) -> Response:
    """``content`` as JSON."""
    return Response(status, orjson.dumps(content), (JSON, *headers))


def problem_response(problem: RequestProblem) -> Response:
    """``{"error": "…"}`` with the status and the headers that belong to it."""
    message = problem.message.encode("utf-8", "backslashreplace").decode()
    headers: tuple[Field, ...] = ()
    if problem.retry_after is not None:
        headers = ((b"retry-after", b"%d" % problem.retry_after),)
    if isinstance(problem, WrongMethod):
        headers = ((b"allow", problem.allow),)
    if problem.status == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    return json_response({"error": message}, problem.status, *headers)
