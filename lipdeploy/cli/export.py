"""``lipdeploy export``: a torch network becomes an ONNX file and a certificate, or nothing at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from lipdeploy.cli import inputs, needs, outputs, report, verdicts
from lipdeploy.cli.options import (
    debug_option,
    graph_output_option,
    json_option,
    limit_option,
    norm_option,
    number,
    numbers,
    positive_number,
    positive_numbers,
    shape,
)
from lipdeploy.errors import InputError, Refused

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from lipdeploy.cli.inputs import Array
    from lipdeploy.export import ExportResult, Parity

OPSETS = click.IntRange(17, 23)
DTYPES = ("float32", "float64", "float16", "bfloat16")
INPUT_DTYPES = ("float32", "float64", "uint8")
SEED = 0


@click.command("export")
@click.argument("target")
@click.option(
    "-o", "--output", required=True, metavar="MODEL.onnx", help="Where the model goes; its certificate lies beside it."
)
@click.option("--checkpoint", metavar="FILE", help="State dict to load (weights only).")
@click.option(
    "--input-shape", "shapes", type=shape, multiple=True, metavar="C,H,W",
    help="Shape of one sample, without the batch axis; once for each input.",
)  # fmt: skip
@norm_option
@limit_option
@click.option(
    "--normalize",
    is_flag=True,
    help="Scale the last linear layer until the proven bound is within --max-lipschitz (default 1).",
)
@click.option("--opset", type=OPSETS, default=20, show_default=True, help="ONNX operator set.")
@click.option(
    "--input-scale", type=positive_number, metavar="S", help="Preprocessing in the graph: x·S first (1/255 for pixels)."
)
@click.option("--mean", type=numbers, metavar="M,…", help="Preprocessing in the graph: subtracted per channel.")
@click.option(
    "--std", type=positive_numbers, metavar="S,…", help="Preprocessing in the graph: divided by, per channel."
)
@click.option(
    "--input-dtype",
    type=click.Choice(INPUT_DTYPES),
    default="float32",
    show_default=True,
    help="What the program receives.",
)
@click.option("--class-names", metavar="FILE", help="Text file with one class name per line.")
@click.option(
    "--dynamic-batch/--static-batch", default=True, show_default=True, help="Leave the batch size open, or fix it to 1."
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Element type of the stored weights [default: the network's].")
@click.option("--weights", type=click.Choice(["int8"]), help="Store weights so, with one scale per output channel.")
@click.option("--standard-ops", is_flag=True, help="Write standard operators only, none of domain lipdeploy.")
@graph_output_option
@click.option("--samples", metavar="DATA.npz", help="Inputs (x) for the comparison with torch [default: random].")
@click.option("--tolerance", type=number, metavar="T", help="Largest accepted difference from torch.")
@json_option
@debug_option
def command(
    target: str,
    output: str,
    checkpoint: str | None,
    shapes: tuple[tuple[int, ...], ...],
    norm: str,
    max_lipschitz: float | None,
    normalize: bool,
    opset: int,
    input_scale: float | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_dtype: str,
    class_names: str | None,
    dynamic_batch: bool,
    dtype: str | None,
    weights: str | None,
    standard_ops: bool,
    graph_output: str | None,
    samples: str | None,
    tolerance: float | None,
    as_json: bool,
) -> int:
    """Export TARGET: package.module:factory, file.py:factory, or a .pt2 program.

    The file is checked, compared with the torch network, verified, and only then written.
    """
    needs.need("torch", purpose="export", install="lipdeploy[export]")
    needs.need("onnxscript", purpose="export", install="lipdeploy[export]")
    read = [(checkpoint, "the checkpoint"), (class_names, "the class names"), (samples, "the samples")]
    outputs.check([("--output", path) for path, _ in outputs.files_of(output)], outputs.places(read))
    names = None if class_names is None else inputs.read_lines(class_names)
    rows = None if samples is None else inputs.read_array(samples)
    example = _example(shapes, rows, input_dtype, input_scale, 2 if dynamic_batch else 1)
    from lipdeploy.export import export, load_target

    with report.working(f"exporting {target}"), _no_exit(target):
        result = export(
            load_target(target, checkpoint),
            example,
            output,
            norm=norm,
            max_lipschitz=max_lipschitz,
            normalize=normalize,
            opset=opset,
            mean=mean,
            std=std,
            input_scale=input_scale,
            input_dtype=input_dtype,
            class_names=names,
            dynamic_batch=dynamic_batch,
            dtype=dtype,
            weights=weights,
            standard_ops=standard_ops,
            output_name=graph_output,
            samples=rows,
            tolerance=tolerance,
            run=_in_onnxruntime if needs.installed("onnxruntime") else None,
        )
    if as_json:
        report.document(result.to_json())
    else:
        report.show(_blocks(result))
    return 0


def _in_onnxruntime(model: ModelProto, feeds: Mapping[str, Array]) -> Sequence[Array]:
    """Run the model as a session would; by ONNX's reference evaluator where ONNX Runtime has no kernel."""
    from lipdeploy.export.parity import run_reference
    from lipdeploy.runtime import find_library
    from lipdeploy.runtime.engine import Engine
    from lipdeploy.runtime.providers import choose

    try:
        session = Engine(choose(None), None, find_library()).open(model, "the exported program")
    except Refused:
        return run_reference(model, feeds)
    outputs: Sequence[Array] = session.run(None, dict(feeds))
    return outputs


@contextlib.contextmanager
def _no_exit(target: str) -> Iterator[None]:
    """Code that calls ``sys.exit`` while it is loaded must not choose our exit code: 1 is a verdict."""
    try:
        yield
    except SystemExit as problem:
        hint = "keep what a script does under: if __name__ == '__main__'"
        raise InputError(f"{target} called sys.exit({problem.code!r})", hint=hint) from problem


def _example(
    shapes: Sequence[tuple[int, ...]], rows: Array | None, dtype: str, scale: float | None, batch: int
) -> Array | tuple[Array, ...]:
    """A batch as a caller would send it, one per input: the first samples, or seeded numbers of the expected spread."""
    import numpy as np

    if rows is not None:
        if len(shapes) > 1:
            raise InputError("--samples is for one input", hint="lipdeploy.export(…, samples=…) in Python takes more")
        if rows.ndim == 0 or not len(rows) or any(rows.shape[1:] != shape for shape in shapes):
            wanted = "".join(f", --input-shape says {shape} for one sample" for shape in shapes)
            raise InputError(f"--samples: array of shape {rows.shape}{wanted}", hint="axis 0 counts samples")
        return rows[:batch]
    if not shapes:
        raise InputError(
            "neither --input-shape nor --samples says how large the input is", hint="--input-shape 3,32,32"
        )
    random = np.random.default_rng(SEED)
    drawn = tuple(_drawn(random, (batch, *shape), dtype, scale) for shape in shapes)
    return drawn if len(drawn) > 1 else drawn[0]


def _drawn(random: np.random.Generator, shape: tuple[int, ...], dtype: str, scale: float | None) -> Array:
    drawn: Array
    if dtype == "uint8":
        drawn = random.integers(0, 256, shape)
    else:
        drawn = random.standard_normal(shape) if scale is None else random.uniform(0.0, 1.0 / scale, shape)
    return drawn.astype(dtype)


def _blocks(result: ExportResult) -> list[report.Block]:
    parity = result.parity
    agreement = "" if parity.argmax_agreement is None else f", {_classes(parity)}"
    scaled = [] if result.output_scale == 1.0 else [f"Outputs scaled by {result.output_scale!r}."]
    return [
        verdicts.summary([result.verdict]),
        f"Wrote {result.path} ({result.nodes} nodes, {result.bytes} bytes) and {result.certificate_path}.",
        f"Differs from torch by {parity.max_abs:.2g} on {parity.samples} samples{agreement}.",
        *scaled,
        *_stored(result),
        *verdicts.advice(result.verdict),
        *verdicts.assumptions([result.verdict]),
    ]


def _classes(parity: Parity) -> str:
    """How many rows keep their class, and how far the lead over the next class moved."""
    kept = f"same class in {parity.samples - parity.changed} ({parity.changed} changed)"
    return kept if parity.margin_change is None else f"{kept}, margins by {parity.margin_change:.2g}"


def _stored(result: ExportResult) -> list[report.Block]:
    stored = result.stored
    if stored is None:
        return []
    zeros = f"; {stored.became_zero} small ones became zero" if stored.became_zero else ""
    return [f"Weights stored in {stored.form} ({stored.tensors} tensors{zeros}), computing in float32."]
