"""Who may ask: static API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from lipdeploy.serve.problems import RequestProblem


class Keys:
    """A set of accepted keys; only their digests are kept."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Whether ``key`` is one of them. Every digest is compared, so that the time says nothing."""
        given, found = hashlib.sha256(key).digest(), False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        return found


def given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key in ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else None
    return headers.get(b"x-api-key")


def check(headers: Mapping[bytes, bytes], *accepted: Keys) -> None:
    """Raise 401 unless the request carries a key that one of ``accepted`` knows."""
    key = given_key(headers)
    if key is None:
        raise RequestProblem(401, "this server wants an API key: Authorization: Bearer KEY", reason="key")
    if not sum([keys.accept(key) for keys in accepted]):  # a list: no shortcut
        raise RequestProblem(401, "unknown API key", reason="key")
