"""One call of torch's exporter, made quiet and made to fail with one clear line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lipdeploy.errors import InputError
from lipdeploy.export.fold import folded
from lipdeploy.export.freeze import Program

UNSUPPORTED = "No ONNX function found"  # as torch says that it has no translation for an operator
MESSAGE_LENGTH = 300
MAX_LEAVES_TRIED = 24
LARGE_BATCH = 2**31
ONE_BATCH = "use x.flatten(1) or x.shape[0] instead of a number, or export with a static batch (--static-batch)"


def capture(program: Program, inputs: Sequence[Tensor], *, opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    """The ONNX model that torch writes for ``program``, still with torch's own names and metadata.

    Raises ``InputError`` naming the layer that torch could not export.
    """
    _require_onnxscript()
    names = ["input"] if len(inputs) == 1 else [f"input_{k}" for k in range(len(inputs))]
    try:
        return _torch_export(program, inputs, names, opset, dynamic_batch)
    except Exception as error:
        raise _explain(error, program, inputs, opset, dynamic_batch) from error


def _require_onnxscript() -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("export needs onnxscript", hint="pip install 'lipdeploy[export]'") from error


def _torch_export(
    module: nn.Module, inputs: Sequence[Tensor], names: list[str], opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    shapes: Any = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in inputs)
        # Program.forward takes *inputs, which torch sees as one tuple argument.
        shapes = (shapes,) if isinstance(module, Program) else shapes
    with _quiet(), torch.no_grad():
        program = _translated(module, tuple(inputs), names, opset, shapes)
    if program is None or program.exported_program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    if dynamic_batch:
        _require_open_batch(program.exported_program)
    model: onnx.ModelProto = program.model_proto
    return model


def _translated(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], opset: int, shapes: Any
) -> torch.onnx.ONNXProgram | None:
    try:
        return _written(module, inputs, names, opset, shapes)
    except torch.onnx.errors.OnnxExporterError as error:
        if UNSUPPORTED in first_line(error):
            with contextlib.suppress(Exception):  # the first error is the one that names what is missing
                return _written(folded(module, inputs, shapes), (), names, opset, None)
        raise


def _written(
    module: nn.Module | torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
    names: list[str],
    opset: int,
    shapes: Any,
) -> torch.onnx.ONNXProgram | None:
    return torch.onnx.export(
        module,
        inputs,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=shapes,
        input_names=names,
        verbose=False,
        external_data=False,
    )


def _require_open_batch(exported: torch.export.ExportedProgram) -> None:
    """Where the network's path depends on the batch, torch fixes its size, or a range, and goes on without a word.

    Sizes of 0 and 1, which torch tells from the others, are left to the parity check.
    """
    nodes = {node.name: node for node in exported.graph.nodes}
    for name in exported.graph_signature.user_inputs:
        size = nodes[name].meta["val"].shape[0]
        if not isinstance(size, torch.SymInt) or not size.node.expr.is_Symbol:
            raise RuntimeError(f"its path was specialized to a batch of {size}")
        sizes = exported.range_constraints.get(size.node.expr)
        if sizes is not None and (bool(sizes.lower > 2) or bool(sizes.upper < LARGE_BATCH)):
            raise RuntimeError(f"its path was specialized to batches from {sizes.lower} to {sizes.upper}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch prints whole graphs when an attempt fails; our error carries the one line that matters."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _explain(
    error: Exception, program: Program, inputs: Sequence[Tensor], opset: int, dynamic_batch: bool
) -> InputError:
    reason = first_line(error)
    if "data-dependent" in reason:
        return InputError(
            f"the network's path depends on values: {reason}",
            hint="write the forward pass without if, while or .item() on tensor values",
        )
    if "specialized" in reason or ("batch" in reason and "constraint" in reason.lower()):
        return InputError(
            f"the network fixes its batch size: {reason}",
            hint=ONE_BATCH,
        )
    culprit = _culprit(program, inputs, opset, dynamic_batch)
    if culprit is None:
        return InputError(
            f"torch could not export the network: {reason}",
            hint="run torch.onnx.export(module, inputs, dynamo=True) to see its full report",
        )
    path, layer, reason = culprit
    return InputError(
        f"torch could not export layer '{path}' ({type(layer).__name__}): {reason}",
        hint="replace the layer by one from docs/export.md, or write its forward with plain torch operations",
    )


def first_line(error: BaseException) -> str:
    """What the root cause says first, without colours."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(root)) or type(root).__name__
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(root).__name__)
    return line[:MESSAGE_LENGTH]


def _culprit(
    program: Program, inputs: Sequence[Tensor], opset: int, dynamic_batch: bool
) -> tuple[str, nn.Module, str] | None:
    """The first layer, in order of use, that torch cannot export by itself."""
    tried: set[str] = set()
    for path, layer, arguments in _leaf_calls(program.network, program, inputs):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}({layer.extra_repr()})"
        if kind in tried or len(tried) >= MAX_LEAVES_TRIED:
            continue
        tried.add(kind)
        try:
            _torch_export(layer, arguments, [f"input_{k}" for k in range(len(arguments))], opset, dynamic_batch)
        except Exception as error:
            return path, layer, first_line(error)
    return None


def _leaf_calls(
    network: nn.Module, program: Program, inputs: Sequence[Tensor]
) -> list[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """(path, layer, its arguments) of every leaf layer, in order of use, as far as the network runs."""
    calls: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = []
    hooks = []
    for path, layer in network.named_modules():
        if any(True for _ in layer.children()):
            continue

        def record(module: nn.Module, arguments: tuple[Any, ...], path: str = path) -> None:
            if all(isinstance(value, Tensor) for value in arguments):
                calls.append((path, module, arguments))

        hooks.append(layer.register_forward_pre_hook(record))
    try:
        with torch.no_grad(), contextlib.suppress(Exception):
            program(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
