"""Where a server listens, and who may reach it there."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lipdeploy.errors import InputError
from lipdeploy.serve.logs import event
from lipdeploy.serve.ports import Port
from lipdeploy.serve.settings import Settings, is_loopback


@dataclass(frozen=True)
class Binding:
    """Where to listen, and with which certificates (of TLS, for once).

    ``admin_port`` moves load and unload to a port of their own; ``grpc_port`` opens one for gRPC. ``workers``
    processes share the ports.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    admin_port: int | None = None
    grpc_port: int | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        """Raises ``InputError`` for half of a TLS configuration."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs both a certificate and its key", hint="--tls-cert F --tls-key F")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InputError("client certificates need TLS", hint="--tls-cert F --tls-key F")
        if self.workers < 1:
            raise InputError(f"--workers must be at least 1, got {self.workers}")
        if self.workers > 1 and self.grpc_port == 0:
            raise InputError("--grpc-port 0: several workers cannot share any free port", hint="name one")


def settle(settings: Settings, binding: Binding) -> Settings:
    """The settings as they apply to this binding: load and unload are offered on a public address only behind a key
    or on a port of their own.
    """
    guarded = bool(settings.admin_keys) or binding.admin_port is not None
    return replace(settings, admin=settings.admin and (guarded or is_loopback(binding.host)))


def check_tls(binding: Binding) -> None:
    """``InputError`` where the certificates cannot be used."""
    if binding.tls_cert is None or binding.tls_key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(binding.tls_cert, binding.tls_key)
        if binding.tls_client_ca is not None:
            context.load_verify_locations(binding.tls_client_ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"TLS: {error}", hint="PEM files: certificate chain, its key, the clients' CA") from error


def announce(binding: Binding, ports: Sequence[Port], settings: Settings) -> None:
    """Log where this server listens, and what a stranger could do to it."""
    scheme = "https" if binding.tls_cert else "http"
    urls = [f"{scheme}://{port.address}" for port in ports]
    event("listening", url=urls[0], admin_url=urls[-1] if len(urls) > 1 else None, workers=binding.workers)
    if not is_loopback(binding.host) and not settings.api_keys and binding.tls_client_ca is None:
        event("anyone who reaches this port may ask", logging.WARNING, hint="--api-key-file, --tls-client-ca")
