"""``export``: the whole way from a torch module to a verified file and its certificate."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

import lipdeploy
from lipdeploy.errors import InputError, IntegrityError, LipdeployError
from lipdeploy.export.assemble import assemble, check, publish, stage, staging
from lipdeploy.export.capture import ONE_BATCH, capture
from lipdeploy.export.freeze import Program, freeze, reference_program
from lipdeploy.export.normalize import normalize as normalized
from lipdeploy.export.options import EXTERNAL_DATA_BYTES, ExportOptions, PerChannel
from lipdeploy.export.parity import (
    Array,
    Parity,
    Run,
    compare,
    farthest_rows,
    require,
    require_stored,
    run_reference,
)
from lipdeploy.export.reference import Reference, reference, small_batches
from lipdeploy.export.samples import FEW_ROWS, example_tensors, parity_samples
from lipdeploy.export.storage import Stored, store
from lipdeploy.export.tidy import tidy
from lipdeploy.verify import Verdict, verify

REPORT_SCHEMA = "lipdeploy/export-report/v1"

Example = Tensor | Array | tuple[Tensor | Array, ...]


@dataclass(frozen=True)
class ExportResult:
    """What an export left on disk, and what was found out about it.

    ``nodes`` counts the nodes of the graph, ``bytes`` the model with its external data. ``output_scale`` is the
    factor that ``normalize=True`` multiplied the outputs by. ``dtype`` is the element type of the linear layers'
    weights, ``stored`` what storing them in fewer bits changed (``None``: they are stored as the program computes).
    """

    path: Path
    certificate_path: Path
    verdict: Verdict
    parity: Parity
    nodes: int
    bytes: int
    output_scale: float = 1.0
    dtype: str = "float32"
    stored: Stored | None = None

    def to_json(self) -> dict[str, Any]:
        """The document ``lipdeploy/export-report/v1``."""
        bound = self.verdict.lipschitz_bound
        return {
            "schema": REPORT_SCHEMA,
            "path": os.fspath(self.path),
            "certificate": os.fspath(self.certificate_path),
            "lipschitz_bound": None if bound is None else float(bound.value),
            "norm": self.verdict.norm,
            "parity": self.parity.to_json(),
            "nodes": self.nodes,
            "bytes": self.bytes,
            **self._storage_json(),
        }

    def _storage_json(self) -> dict[str, Any]:
        """What is said where weights are stored in fewer bits than the program computes in."""
        if self.stored is None:
            return {}
        classes = None if self.parity.argmax_agreement is None else self.parity.changed
        cost = {
            "tensors": self.stored.tensors,
            "became_zero": self.stored.became_zero,
            "samples": self.parity.samples,
            "classes_changed": classes,
            "margin_change": self.parity.margin_change,
        }
        return {"dtype": self.dtype, "storage": cost}


def export(
    module: nn.Module,
    example_input: Example,
    path: str | os.PathLike[str],
    *,
    norm: str = "l2",
    max_lipschitz: float | None = None,
    normalize: bool = False,
    opset: int = 20,
    mean: PerChannel = None,
    std: PerChannel = None,
    input_scale: float | None = None,
    input_dtype: str = "float32",
    class_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dtype: str | None = None,
    weights: str | None = None,
    standard_ops: bool = False,
    output_name: str | None = None,
    samples: Tensor | Array | None = None,
    tolerance: float | None = None,
    run: Run | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
) -> ExportResult:
    """Export ``module`` to a verified ONNX file with a certificate beside it, or write nothing.

    Args:
        module: the network; it is copied, and exported as evaluation mode uses it.
        example_input: one batch, (batch, …), as a caller would send it (before preprocessing); a tuple for a network
            with several inputs. Fixes every size but the batch.
        path: the file to write, ``….onnx``. The certificate goes to ``….cert.json``.
        norm: ``l2``, ``linf``, ``l1``, ``l2-linf`` or ``l1-linf``.
        max_lipschitz: refuse to write a model whose proven bound is larger.
        normalize: scale the last linear layer so that the proven bound is ≤ ``max_lipschitz`` (default 1).
        opset: 17 to 23.
        mean, std: (x − mean)/std in the graph, after ``input_scale``; one number or one per channel.
        input_scale: x·input_scale in the graph, first.
        input_dtype: element type of the graph's input: float32, float64 or uint8.
        class_names: stored in the file, one per logit.
        dynamic_batch: leave axis 0 open.
        dtype: store and compute in float32 or float64 (default: as the network does), or store the linear layers'
            weights and biases in float16 or bfloat16 and compute in float32.
        weights: ``int8`` stores the linear layers' weights so, with one scale per output channel; the program
            computes in float32.
        standard_ops: inline our operators' function bodies, so that only standard operators remain.
        output_name: of several outputs (``output_0``, ``output_1``, …), the one that the certificate is about.
        samples: rows for the parity check; default: the example and seeded variations of it.
        tolerance: largest accepted absolute difference to torch. Default: in each row 2e-5 (float64: 1e-10) times its
            largest output and 64 times the rounding of torch's own float32; for stored weights (float16: 2e-3,
            bfloat16: 2e-2, int8: 5e-2) times max(1, largest output).
        run: runs the model for the parity check; default: ONNX's reference evaluator.
        external_data_bytes: larger models keep their weights in one ``.onnx.data`` file.

    Raises:
        InputError: an argument, a layer or a file that cannot be used.
        Refused: the verifier cannot prove a bound for the exported graph.
        LimitExceeded: the proven bound is above ``max_lipschitz``; its ``verdict`` says where that comes from.
        IntegrityError: the exported model does not compute what the module computes.
    """
    options = ExportOptions(
        path=Path(path),
        norm=norm,
        max_lipschitz=max_lipschitz,
        normalize=normalize,
        opset=opset,
        mean=mean,
        std=std,
        input_scale=input_scale,
        input_dtype=input_dtype,
        class_names=tuple(class_names or ()),
        dynamic_batch=dynamic_batch,
        dtype=dtype,
        weights=weights,
        standard_ops=standard_ops,
        output_name=output_name,
        tolerance=tolerance,
        external_data_bytes=external_data_bytes,
    )
    options.check()
    inputs = example_tensors(example_input, options)
    fresh = functools.partial(reference_program, module, options, inputs)
    program = fresh()
    feeds = parity_samples(inputs, samples, options, few=run is None)
    known = reference(program, feeds)
    model = capture_model(program, inputs, options)
    _check_class_names(options, known.outputs[_judged(model, options)])
    return _finish(model, fresh, known, options, run or run_reference)


def capture_model(program: Program, inputs: Sequence[Tensor], options: ExportOptions) -> onnx.ModelProto:
    """The finished model in memory; nothing about it is proven or compared yet."""
    raw = capture(freeze(program), inputs, opset=options.opset, dynamic_batch=options.dynamic_batch)
    written = next(entry.version for entry in raw.opset_import if entry.domain in ("", "ai.onnx"))
    if written != options.opset:
        raise InputError(
            f"torch cannot write this network in opset {options.opset}, only in {written}",
            hint=f"pass opset={written} (--opset {written})",
        )
    return assemble(tidy(raw, standard_ops=options.standard_ops), options, lipdeploy.__version__)


def _judged(model: onnx.ModelProto, options: ExportOptions) -> int:
    """Which output the statement will be about; of several that none was chosen from, the verifier refuses them all."""
    names = [value.name for value in model.graph.output]
    if options.normalize and len(names) > 1:
        raise InputError(f"normalize scales one output, the network has {len(names)}", hint="return one tensor")
    if options.output_name is None:
        return 0
    if options.output_name not in names:
        hint = f"the network has {', '.join(names)}"
        raise InputError(f"there is no output {options.output_name!r}", hint=hint)
    return names.index(options.output_name)


def _check_class_names(options: ExportOptions, logits: Array) -> None:
    names = options.class_names
    if names and (logits.ndim != 2 or logits.shape[1] != len(names)):
        raise InputError(f"{len(names)} class names for an output of shape {logits.shape}", hint="one name per logit")


def _finish(
    model: onnx.ModelProto, fresh: Callable[[], Program], known: Reference, options: ExportOptions, run: Run
) -> ExportResult:
    """Compare, normalise, store, check, verify and write; the folder is as before when any of this fails."""
    parity = _parity(model, known, options, run)  # first what is ours, then what scaling and rounding cost
    factor = 1.0
    if options.normalize:
        model, factor = _normalize(model, options)
    model, stored = _stored(model, options)
    check(model) if model.ByteSize() < options.external_data_bytes else None
    if options.normalize or stored is not None:
        parity = _parity(model, known.scaled(factor), options, run, options.storage)
    with staging(options.path) as folder:
        staged = stage(model, folder, options)
        check(staged[-1]) if model.ByteSize() >= options.external_data_bytes else None
        size = sum(file.stat().st_size for file in staged)
        verdict = verify(
            staged[-1], norm=options.norm, max_lipschitz=options.max_lipschitz, output_name=options.output_name
        )
        verdict = dataclasses.replace(verdict, path=os.fspath(options.path))
        verdict.raise_for_status()
        if options.dynamic_batch:
            _require_any_batch(model, [few.scaled(factor) for few in small_batches(fresh, known)], options, run)
        certificate = folder / options.certificate_path.name
        verdict.write_certificate(certificate)
        publish([*staged, certificate], options.path.parent, stale=[options.data_path] if len(staged) == 1 else [])
    return ExportResult(
        path=options.path,
        certificate_path=options.certificate_path,
        verdict=verdict,
        parity=parity,
        nodes=len(model.graph.node),
        bytes=size,
        output_scale=factor,
        dtype=options.storage or str(known.outputs[0].dtype),
        stored=stored,
    )


def _stored(model: onnx.ModelProto, options: ExportOptions) -> tuple[onnx.ModelProto, Stored | None]:
    return (model, None) if options.storage is None else store(model, options.storage)


def _normalize(model: onnx.ModelProto, options: ExportOptions) -> tuple[onnx.ModelProto, float]:
    def prove(candidate: onnx.ModelProto) -> float:
        with staging(options.path) as folder:
            verdict = verify(stage(_stored(candidate, options)[0], folder, options)[-1], norm=options.norm)
        verdict.raise_for_status()
        return float("inf") if verdict.lipschitz_bound is None else float(verdict.lipschitz_bound.value)

    return normalized(model, 1.0 if options.max_lipschitz is None else options.max_lipschitz, prove)


def _require_any_batch(model: onnx.ModelProto, batches: Sequence[Reference], options: ExportOptions, run: Run) -> None:
    """Raise ``InputError`` where the file agrees with torch on all rows, but not on a few of them alone."""
    for few in batches:
        try:
            _parity(model, few, options, run, options.storage)
        except IntegrityError as error:
            rows = len(few.feeds[0])
            raise InputError(
                f"the network depends on its batch size: in a batch of {rows}, {error.message}", hint=ONE_BATCH
            ) from error


def _parity(
    model: onnx.ModelProto, known: Reference, options: ExportOptions, run: Run, storage: str | None = None
) -> Parity:
    """How the file differs from torch. Raises ``IntegrityError`` where that is more than rounding."""
    names = [value.name for value in model.graph.input]
    feeds = {name: value.numpy().copy() for name, value in zip(names, known.feeds, strict=True)}
    actual = [np.asarray(value) for value in run(model, feeds)]
    parity = compare(known.outputs, actual, _judged(model, options))
    if storage is None:
        _require_but_for_the_runtime(parity, model, known, actual, options, run)
    else:
        require_stored(parity, known.outputs, options.tolerance, storage)
    return parity


def _require_but_for_the_runtime(
    parity: Parity, model: onnx.ModelProto, known: Reference, actual: Sequence[Array], options: ExportOptions, run: Run
) -> None:
    """``require``, but for what only the runtime's own rounding explains.

    ONNX Runtime's Sigmoid in float32 errs by 1e-7 however small its value is, torch's does not. Where ONNX's reference
    evaluator agrees with torch on the rows in question, the file means what torch means.
    """
    try:
        require(parity, known.outputs, actual, options.tolerance, known.noise)
    except IntegrityError as error:
        if options.tolerance is not None or known.noise is None or run is run_reference:
            raise
        count = FEW_ROWS if options.dynamic_batch else len(known.feeds[0])
        rows = known.rows(farthest_rows(known.outputs, actual, known.noise, count))
        try:
            require(parity, known.outputs, actual, None)
            _parity(model, rows, options, run_reference)
        except LipdeployError:
            raise error from None
