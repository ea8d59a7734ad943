"""What the paths of the REST door mean."""

from __future__ import annotations

import functools

GET, POST = ("GET", "HEAD"), ("POST",)
CACHED_PATHS = 1024
LONGEST_CACHED = 256  # characters: strangers choose paths, and we keep them


class Route:
    """What a path means: the handler's name, its methods, and the model it names."""

    __slots__ = ("methods", "model", "name", "version")

    def __init__(self, name: str, methods: tuple[str, ...], model: str = "", version: str | None = None) -> None:
        self.name, self.methods, self.model, self.version = name, methods, model, version


PLAIN: dict[str, Route] = {
    "/v2": Route("server", GET),
    "/v2/": Route("server", GET),
    "/v2/health/live": Route("live", GET),
    "/v2/health/ready": Route("ready", GET),
    "/healthz": Route("live", GET),
    "/v2/models/stats": Route("statistics", GET),
    "/v2/repository/index": Route("index", POST),
    "/metrics": Route("metrics", GET),
    "/openapi.json": Route("openapi", GET),
}
MODEL_ROUTES = {
    "": ("metadata", GET),
    "infer": ("infer", POST),
    "ready": ("model_ready", GET),
    "stats": ("statistics", GET),
    "certificate": ("certificate", GET),
}
ADMIN_ROUTES = frozenset({"load", "unload"})


def route(path: str) -> Route | None:
    """The route of a path below the app's root; ``None``: there is nothing."""
    return _known(path) if len(path) <= LONGEST_CACHED else _read(path)


def _read(path: str) -> Route | None:
    plain = PLAIN.get(path)
    if plain is not None:
        return plain
    words = path.split("/")
    if len(words) == 6 and words[:4] == ["", "v2", "repository", "models"] and words[5] in ADMIN_ROUTES:
        return Route(words[5], POST, words[4]) if words[4] else None
    if len(words) < 4 or words[:3] != ["", "v2", "models"] or not words[3]:
        return None
    rest, version = words[4:], None
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
        if not version:
            return None
    action = rest[0] if rest else ""
    if len(rest) > 1 or (rest and not action) or action not in MODEL_ROUTES:
        return None
    name, methods = MODEL_ROUTES[action]
    return Route(name, methods, words[3], version)


_known = functools.lru_cache(maxsize=CACHED_PATHS)(_read)
