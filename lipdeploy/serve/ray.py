"""The same app on Ray Serve. Replicas, health, scaling, rolling updates are Ray's; every replica verifies for itself.

``serve run lipdeploy.serve.ray:app models=/models/net.onnx`` or, in a Serve configuration, ``import_path:
lipdeploy.serve.ray:app`` with ``args``; ``lipdeploy serve MODEL --engine ray`` does it from here. A replica reads the
model's files from its own node and refuses to start when they are not the bytes that ``app`` read.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve

from lipdeploy.errors import InputError
from lipdeploy.serve.agreement import Digests, check_same
from lipdeploy.serve.asgi import App, create_app
from lipdeploy.serve.logs import event
from lipdeploy.serve.models import digest
from lipdeploy.serve.settings import ModelSource, Settings, model_sources, read_setting
from lipdeploy.verify.source import read_source

NAME = "lipdeploy"
#: Arguments of ``app`` that say how to deploy, not how to serve.
DEPLOYMENT = ("replicas", "max_replicas", "max_ongoing_requests", "max_queued_requests", "num_cpus")
HEALTH_SECONDS = 5.0
SHUTDOWN_SECONDS = 30.0


def app(args: Mapping[str, Any]) -> serve.Application:
    """A Ray Serve application. ``args`` are numbers or text.

    ``models`` (required): paths as on the command line, a list or text with commas. ``name``: of the only model.
    ``replicas`` (default 1) and ``max_replicas`` (then Ray scales between the two); for each replica
    ``max_ongoing_requests`` (default 64), ``max_queued_requests`` and the ``num_cpus`` that Ray reserves (default 1).
    Everything else is a field of ``Settings``. Raises ``InputError`` for what is missing, unknown or unreadable.
    """
    given = dict(args)
    models = given.pop("models", None)
    if not models:
        raise InputError("no model to serve", hint="models=/path/net.onnx")
    deployment = {name: given.pop(name) for name in DEPLOYMENT if name in given}
    words = models.split(",") if isinstance(models, str) else list(models)
    sources = model_sources(words, given.pop("name", None))
    settings = {name: _setting(name, value) for name, value in given.items()}
    Settings(models=sources, **settings)  # what makes no sense fails here, not in every replica
    paths = {source.name: os.path.abspath(source.path) for source in sources}
    return _deployment(deployment).bind(paths, _digests(sources), settings)


def _setting(name: str, value: Any) -> Any:
    """A setting that may have come as text from ``serve run``."""
    if name in ("models", "admin", "admin_keys", "fail_fast"):
        raise InputError(f"'{name}' is not offered here", hint="Ray has its own way to load, and to give up")
    return read_setting(name, value)


def _digests(sources: Sequence[ModelSource]) -> dict[str, dict[str, str]]:
    """Model → version → SHA-256 of the file, and of its external data by name."""
    return {
        source.name: {version: digest(read_source(file)) for version, file in source.files().items()}
        for source in sources
    }


def _deployment(options: Mapping[str, Any]) -> Any:
    """The deployment class under these options."""
    least, most = int(options.get("replicas", 1)), int(options.get("max_replicas", options.get("replicas", 1)))
    if not 1 <= least <= most:
        raise InputError(f"replicas={least}, max_replicas={most}: expected 1 ≤ replicas ≤ max_replicas")
    scaling: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scaling = {"autoscaling_config": {"min_replicas": least, "max_replicas": most}}
    return serve.deployment(
        name=NAME,
        max_ongoing_requests=int(options.get("max_ongoing_requests", 64)),
        max_queued_requests=int(options.get("max_queued_requests", -1)),
        ray_actor_options={"num_cpus": float(options.get("num_cpus", 1))},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        **scaling,
    )(serve.ingress(_current)(Replica))


class _Forwarding:
    """The replica's app. Ray asks for an ASGI app per class; ours exists per replica, which is a process of its own."""

    app: App | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        assert _Forwarding.app is not None  # the replica is healthy only after it has verified
        await _Forwarding.app(scope, receive, send)


def _current() -> Callable[..., Any]:
    return _Forwarding()


class Replica:
    """One replica: it is healthy once every model is proven here, from this node's files."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, paths: Mapping[str, str], digests: Digests, settings: Mapping[str, Any]
    ) -> None:
        self._certified = create_app([f"{name}={path}" for name, path in paths.items()], admin=False, **settings)
        await self._certified.service.start()
        failures = self._certified.service.repository.failures
        if failures:
            raise RuntimeError(f"not ready: {failures[0]}")
        self._compare(digests)
        _Forwarding.app = self._certified

    def _compare(self, digests: Digests) -> None:
        found: dict[str, dict[str, str]] = {name: {} for name in digests}
        for model in self._certified.service.repository.answering():
            found[model.name][model.version] = digest(model.session.verdict)
        check_same(digests, found)

    def check_health(self) -> None:
        """Ray asks every few seconds and replaces a replica that raises."""
        state = self._certified.service.readiness()
        if not state["ready"]:
            raise RuntimeError(state["reason"])


def run(args: Mapping[str, Any], host: str, port: int, route_prefix: str = "/") -> int:
    """Deploy on the Ray cluster of this machine (``RAY_ADDRESS``, else a running one, else a new one) until a signal.

    The exit code: 0 after a drain. Raises as ``app`` does, and ``InputError`` where the deployment does not come up.
    """
    application = app(args)
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS") or _running(), include_dashboard=False, log_to_driver=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    serve.start(http_options={"host": host, "port": port, "location": "EveryNode"})
    try:
        serve.run(application, name=NAME, route_prefix=route_prefix)
    except RuntimeError as error:
        serve.delete(NAME)
        raise InputError(f"no replica became ready: {error}", hint="the replicas' logs say why: ray logs") from error
    event("listening", url=f"http://{host}:{port}", engine="ray", nodes=len(ray.nodes()))
    ended.wait()
    event("draining", engine="ray")
    serve.delete(NAME)  # replicas answer what they have
    return 0


def _running() -> str | None:
    """``auto`` where a cluster runs on this machine."""
    return "auto" if Path("/tmp/ray/ray_current_cluster").exists() else None
