"""``lipdeploy package``: a verified model as a folder for Triton, MLServer or KServe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lipdeploy.cli import report
from lipdeploy.cli.needs import need
from lipdeploy.cli.options import debug_option, graph_output_option, limit_option, norm_option, radius
from lipdeploy.cli.predict import MODES
from lipdeploy.errors import InputError

if TYPE_CHECKING:
    from lipdeploy.serve.packages import Contents, Files

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@click.group("package", invoke_without_command=True)
@debug_option
@click.pass_context
def command(ctx: click.Context) -> None:
    """Write a deployable folder: the verified bytes, their certificate, and the host's configuration."""
    if ctx.invoked_subcommand is None:
        report.diagnostic(ctx.get_help())
        ctx.exit(InputError.exit_code)


def _common(function: Decorated) -> Decorated:
    """What every kind of package is made from."""
    options = (
        click.argument("model"),
        click.option("-o", "--output", required=True, metavar="DIR", help="The folder to make."),
        click.option("--name", metavar="NAME", help="The model's name [default: the file's stem]."),
        norm_option,
        limit_option,
        graph_output_option,
        click.option("--certify", type=click.Choice(MODES), help="The program that answers [default: f64]."),
        click.option("--epsilon", type=radius, metavar="R", help="Radius to certify where a request names none."),
        debug_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command("triton")
@_common
@click.option(
    "--backend", type=click.Choice(("python", "onnxruntime")), default="python", show_default=True,
    help="python answers with certificates; onnxruntime with logits, and without any guarantee.",
)  # fmt: skip
@click.option("--batching", is_flag=True, help="Let Triton merge requests: one number per row becomes shape [N, 1].")
@click.option(
    "--mount", default="/models", show_default=True, metavar="PATH", help="Where the container sees DIR (onnxruntime)."
)
def triton(output: str, backend: str, batching: bool, mount: str, **given: Any) -> int:
    """A model repository for Triton Inference Server."""
    from lipdeploy.serve import packages

    verified = _verified(**given)
    _write(packages.for_triton(verified, backend, mount=mount, batching=batching, library=_library), output, verified)
    report.line(f"tritonserver --model-repository {output}")
    return 0


@command.command("mlserver")
@_common
def mlserver(output: str, **given: Any) -> int:
    """A folder for MLServer, with a runtime that certifies."""
    verified = _verified(**given)
    from lipdeploy.serve import packages

    _write(packages.for_mlserver(verified), output, verified)
    report.line(f"mlserver start {output}")
    return 0


@command.command("kserve")
@_common
@click.option("--image", metavar="IMAGE", help="The container image [default: lipdeploy and its version].")
@click.option("--storage-uri", metavar="URI", help="Where the folder 'model' will lie [default: pvc://models/NAME].")
def kserve(output: str, image: str | None, storage_uri: str | None, **given: Any) -> int:
    """Manifests for KServe (ServingRuntime and InferenceService), a Dockerfile, and the model's folder."""
    verified = _verified(**given)
    from lipdeploy.serve import packages

    image = image or f"lipdeploy:{report.version().partition('+')[0]}"
    storage = storage_uri or f"pvc://models/{verified.name}"
    _write(packages.for_kserve(verified, image, storage), output, verified)
    report.line(f"kubectl apply -f {output}/serving-runtime.yaml -f {output}/inference-service.yaml")
    return 0


def _verified(model: str, name: str | None, norm: str, graph_output: str | None, **settings: Any) -> Contents:
    need("uvicorn", purpose="package", install="lipdeploy[serve]")
    from lipdeploy.serve import packages

    with report.working(f"verifying {model}"):
        return packages.contents(model, name, norm=norm, output_name=graph_output, **settings)


def _write(files: Files, output: str, verified: Contents) -> None:
    from lipdeploy.serve import packages

    packages.write(files, output)
    bound = verified.verdict.lipschitz_bound
    report.line(f"{output}: {len(files)} files, Lipschitz bound {bound} ({verified.verdict.norm})")


def _library() -> Path | None:
    from lipdeploy.runtime import find_library

    found = find_library()
    return None if found is None else Path(found.path)
