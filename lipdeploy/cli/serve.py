"""``lipdeploy serve``: the Open Inference Protocol in front of verified models."""

from __future__ import annotations

from typing import Any

import click

from lipdeploy.cli.needs import need
from lipdeploy.cli.options import debug_option, graph_output_option, limit_option, norm_option, number, radius
from lipdeploy.errors import InputError

MODES = ("f64", "adaptive", "f32", "network")
LEVELS = ("debug", "info", "warning", "error")
PORT = click.IntRange(0, 65535)
COUNT = click.IntRange(1)
NOT_OVER_RAY = (
    "admin_port", "grpc_port", "workers", "admin_key_file", "tls_cert", "tls_key", "tls_client_ca", "fail_fast",
)  # fmt: skip
OVER_RAY = (
    "name", "norm", "max_lipschitz", "certify", "epsilon", "threads", "max_batch_rows", "max_queue_rows",
    "max_queue_bytes", "max_client_rows", "max_body_bytes", "request_seconds", "replicas", "max_replicas",
)  # fmt: skip
BINDING = ("host", "port", "admin_port", "grpc_port", "tls_cert", "tls_key", "tls_client_ca")


@click.command("serve")
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="Port for REST; 0: any free one.")
@click.option("--admin-port", type=PORT, help="A port of its own for load and unload.")
@click.option("--grpc-port", type=PORT, help="Also answer gRPC on this port (needs the grpc extra).")
@click.option(
    "--engine", type=click.Choice(("local", "ray")), default="local", show_default=True,
    help="ray: replicas on the Ray cluster of this machine, each of which verifies for itself.",
)  # fmt: skip
@click.option("--replicas", type=COUNT, default=1, show_default=True, help="With --engine ray: replicas, at least.")
@click.option("--max-replicas", type=COUNT, help="With --engine ray: scale up to so many.")
@click.option("--workers", type=COUNT, default=1, show_default=True, help="Processes that share the port.")
@click.option("--name", help="Name of the only model (default: the file's stem).")
@norm_option
@limit_option
@graph_output_option
@click.option(
    "--certify", type=click.Choice(MODES), default="f64", show_default=True,
    help="The program whose answers are certified.",
)  # fmt: skip
@click.option("--epsilon", type=radius, metavar="R", help="Radius to certify where a request names none.")
@click.option("--threads", type=COUNT, help="Threads of one inference (default: ONNX Runtime's choice).")
@click.option("--max-batch-rows", type=COUNT, default=64, show_default=True, help="Rows in a batch.")
@click.option("--max-queue-rows", type=COUNT, default=1024, show_default=True, help="Rows that may wait; then 503.")
@click.option(
    "--max-queue-bytes", type=COUNT, default=256 * 2**20, show_default=True, help="Bytes that may wait; then 503."
)
@click.option("--max-client-rows", type=COUNT, help="Rows of one client that may wait; then 429.")
@click.option(
    "--max-body-bytes", type=COUNT, default=32 * 2**20, show_default=True, help="Length of a request; then 413."
)
@click.option("--batch-delay", type=number, default=0.0, metavar="S", help="Seconds a busy server waits for more rows.")
@click.option("--request-seconds", type=number, metavar="S", help="Deadline of a request that names none; then 504.")
@click.option(
    "--drain-seconds", type=number, default=30.0, show_default=True, metavar="S",
    help="Most seconds between SIGTERM and the exit.",
)  # fmt: skip
@click.option("--api-key-file", metavar="FILE", help="Keys that may ask, one a line.")
@click.option("--admin-key-file", metavar="FILE", help="Keys that may load and unload, one a line.")
@click.option("--tls-cert", metavar="FILE", help="TLS: certificate chain (PEM).")
@click.option("--tls-key", metavar="FILE", help="TLS: its key (PEM).")
@click.option("--tls-client-ca", metavar="FILE", help="TLS: clients must show a certificate signed by this CA (PEM).")
@click.option("--fail-fast", is_flag=True, help="End with the contract's exit code when a model fails.")
@click.option("--access-log", is_flag=True, help="One log line a request.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="Least level to log.")
@click.option("--tracing", is_flag=True, help="OpenTelemetry spans (needs opentelemetry-sdk).")
@debug_option
def command(models: tuple[str, ...], **given: Any) -> int:
    """Serve verified MODELs: ready when every one is proven, a certificate with every answer.

    MODEL is an ONNX file, NAME=FILE, a folder of versions (NAME/1/model.onnx), or a folder of such folders.
    Open Inference Protocol v2 (REST, binary tensors), metrics at /metrics, OpenAPI at /openapi.json. Logs are JSON
    lines on standard error. SIGTERM drains and ends with code 0; SIGHUP reloads.
    """
    if given["engine"] == "local" and (given["replicas"] != 1 or given["max_replicas"] is not None):
        raise InputError("--replicas is for --engine ray", hint="--workers N runs N processes on this machine")
    need("onnxruntime", purpose="serve", install="lipdeploy[serve]")
    for module in ("uvicorn", "httptools", "orjson"):
        need(module, purpose="serve", install="lipdeploy[serve]")
    if given["grpc_port"] is not None:
        need("grpc", purpose="serve --grpc-port", install="lipdeploy[grpc]")
    from lipdeploy.serve import logs, server
    from lipdeploy.serve.binding import Binding
    from lipdeploy.serve.settings import Settings, model_sources, read_keys

    settings = Settings(
        models=model_sources(models, given["name"]),
        norm=given["norm"],
        max_lipschitz=given["max_lipschitz"],
        output_name=given["graph_output"],
        certify=given["certify"],
        epsilon=given["epsilon"],
        threads=given["threads"],
        max_batch_rows=given["max_batch_rows"],
        max_queue_rows=given["max_queue_rows"],
        max_queue_bytes=given["max_queue_bytes"],
        max_client_rows=given["max_client_rows"],
        max_body_bytes=given["max_body_bytes"],
        batch_delay_seconds=given["batch_delay"],
        request_seconds=given["request_seconds"],
        drain_seconds=given["drain_seconds"],
        api_keys=read_keys(given["api_key_file"]) if given["api_key_file"] else (),
        admin_keys=read_keys(given["admin_key_file"]) if given["admin_key_file"] else (),
        access_log=given["access_log"],
        tracing=given["tracing"],
        fail_fast=given["fail_fast"],
    )
    binding = Binding(**{name: given[name] for name in BINDING}, workers=given["workers"])
    logs.configure(given["log_level"])
    if given["engine"] == "ray":
        return _over_ray(models, given)
    return server.run(settings, binding)


def _over_ray(models: tuple[str, ...], given: dict[str, Any]) -> int:
    """The same settings on Ray Serve, whose proxies have the doors."""
    for name in NOT_OVER_RAY:
        if given[name] not in (None, False, 1):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is for --engine local", hint="Ray's proxies answer HTTP; put TLS before them")
    need("ray", purpose="serve --engine ray", install="lipdeploy[ray]")
    from lipdeploy.serve import ray
    from lipdeploy.serve.settings import read_keys

    args = {name: given[name] for name in OVER_RAY if given[name] is not None}
    if given["graph_output"] is not None:
        args["output_name"] = given["graph_output"]
    args["num_cpus"] = given["threads"] or 1
    if given["api_key_file"]:
        args["api_keys"] = read_keys(given["api_key_file"])
    return ray.run({"models": models, **args}, given["host"], given["port"])
