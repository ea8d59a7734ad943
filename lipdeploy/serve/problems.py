"""What can be wrong with one request: an HTTP status and a sentence. The process itself is fine.

Statuses and what they are on gRPC: 400 INVALID_ARGUMENT, 401 UNAUTHENTICATED, 403 PERMISSION_DENIED, 404 NOT_FOUND,
409 FAILED_PRECONDITION, 413 and 429 RESOURCE_EXHAUSTED, 499 CANCELLED, 500 INTERNAL, 503 UNAVAILABLE,
504 DEADLINE_EXCEEDED.
"""

from __future__ import annotations

from lipdeploy.errors import InputError, LipdeployError, Refused


class RequestProblem(Exception):
    """One request cannot be answered: ``status`` is HTTP's, ``retry_after`` whole seconds where waiting helps.

    ``reason`` is a short word for the metric ``lipdeploy_rejected_total``; empty for mistakes of the client.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.reason = reason


def bad(message: str) -> RequestProblem:
    """The client's mistake: 400."""
    return RequestProblem(400, message)


def of_failure(error: BaseException) -> RequestProblem:
    """What a client may know about an exception: input errors are theirs, anything else is ours and stays inside."""
    if isinstance(error, RequestProblem):
        return error
    if isinstance(error, InputError | Refused):
        return bad(f"{error.message}; {error.hint}" if error.hint else error.message)
    if isinstance(error, LipdeployError):
        return RequestProblem(500, error.message, reason="integrity")
    return RequestProblem(500, "internal error; the server's log says more", reason="internal")
