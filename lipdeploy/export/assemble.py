"""From a tidy graph to a complete model, and from a model to files that appear all at once or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, external_data_helper, helper, inliner, numpy_helper

from lipdeploy.errors import InputError, LipdeployError
from lipdeploy.export.graph import Graph
from lipdeploy.export.options import ExportOptions
from lipdeploy.ops import DOMAIN, VERSION, attach_functions

IR_VERSION = 10  # what ONNX Runtime 1.20, the oldest that we support, reads
GRAPH_NAME = "network"
INLINE_BYTES = 1024  # smaller tensors (shapes, axes) stay in the .onnx file even when there is external data


def assemble(graph: Graph, options: ExportOptions, version: str) -> onnx.ModelProto:
    """The model: inputs and outputs with the batch axis named, functions for our operators, metadata of ours only."""
    initializers = [numpy_helper.from_array(np.asarray(v, order="C"), name) for name, v in graph.constants.items()]
    inputs = [_interface(value, options.dynamic_batch) for value in graph.proto.input]
    outputs = [_interface(value, options.dynamic_batch) for value in graph.proto.output]
    body = helper.make_graph(graph.nodes, GRAPH_NAME, inputs, outputs, initializers)
    model = helper.make_model(
        body,
        producer_name="lipdeploy",
        producer_version=version,
        ir_version=IR_VERSION,
        opset_imports=_opset_imports(graph, options.opset),
    )
    _set_metadata(model, options, version)
    _attach(model, graph)
    return inline_functions(model) if options.standard_ops else model


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in standard operators only; what a function becomes is named after the node that called it."""
    owners = {value: node.name for node in model.graph.node for value in node.output}
    flat: onnx.ModelProto = inliner.inline_local_functions(model)
    kept = [entry for entry in flat.opset_import if entry.domain != DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    _name_inlined(flat.graph, owners)
    return flat


def _name_inlined(graph: onnx.GraphProto, owners: Mapping[str, str]) -> None:
    """An inlined body ends in the node that writes its caller's output, so the owner is found walking backwards."""
    owner, bodies = "", list[tuple[str, onnx.NodeProto]]()
    for node in reversed(graph.node):
        owner = next((owners[value] for value in node.output if value in owners), owner)
        bodies.append((owner, node))
    sizes, counts = Counter(owner for owner, _ in bodies), Counter[str]()
    for owner, node in reversed(bodies):
        if sizes[owner] == 1:
            continue
        name = f"{owner}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name] - 1}"


def check(model: onnx.ModelProto | Path) -> None:
    """ONNX's checker with strict shape inference; a failure here is ours, not the user's."""
    try:
        onnx.checker.check_model(model if isinstance(model, onnx.ModelProto) else os.fspath(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LipdeployError(f"the exported graph is not valid ONNX: {error}", hint="please report this") from error


def model_bytes(model: onnx.ModelProto) -> bytes:
    """The model's bytes; the same model gives the same bytes."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _opset_imports(graph: Graph, opset: int) -> list[onnx.OperatorSetIdProto]:
    domains = {node.domain for node in graph.nodes} - {"", "ai.onnx"}
    foreign = sorted(domains - {DOMAIN})
    if foreign:
        names = sorted(f"{node.domain}::{node.op_type}" for node in graph.nodes if node.domain in foreign)
        raise InputError(f"the network needs operators outside ONNX: {', '.join(names)}", hint="see docs/export.md")
    imports = [helper.make_opsetid("", opset)]
    return [*imports, helper.make_opsetid(DOMAIN, VERSION)] if domains else imports


def _interface(value: ValueInfoProto, dynamic_batch: bool) -> ValueInfoProto:
    """Name, element type and shape only; axis 0 is called ``batch`` where it is dynamic."""
    tensor = value.type.tensor_type
    sizes: list[int | str] = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    if dynamic_batch and sizes:
        sizes[0] = "batch"
    return helper.make_tensor_value_info(value.name, tensor.elem_type, sizes)


def _set_metadata(model: onnx.ModelProto, options: ExportOptions, version: str) -> None:
    entries = {"lipdeploy.version": version, "lipdeploy.norm": options.norm}
    if options.class_names:
        entries["lipdeploy.class_names"] = json.dumps(list(options.class_names), ensure_ascii=False)
    helper.set_model_props(model, entries)


def _attach(model: onnx.ModelProto, graph: Graph) -> None:
    ours = [node for node in graph.nodes if node.domain == DOMAIN]
    if ours:
        attach_functions(model, _element_types(model))


def _element_types(model: onnx.ModelProto) -> set[int]:
    """The network's floating type: every operator of ours computes in it."""
    floating = {TensorProto.FLOAT, TensorProto.DOUBLE}
    weights = {tensor.data_type for tensor in model.graph.initializer}
    outputs = {value.type.tensor_type.elem_type for value in model.graph.output}
    return (weights | outputs) & floating


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A private folder beside ``target`` that disappears, whatever happens."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {error.strerror}", hint="choose another folder") from error
    with folder as name:
        yield Path(name)


def stage(model: onnx.ModelProto, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the model into ``folder`` under its final names; with a ``.data`` file when it is large."""
    path, files = folder / options.path.name, []
    try:
        if model.ByteSize() > options.external_data_bytes:
            model, data = _externalize(model, folder, options.data_path.name)
            files.extend([data] if data.exists() else [])  # no file where every tensor is small
            _require_no_link(options) if files else None
        with path.open("wb") as file:
            file.write(model_bytes(model))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {options.path}: {error.strerror}", hint="free some space") from error
    return [*files, path]


def _require_no_link(options: ExportOptions) -> None:
    """External data lies beside the model's own name, where a program that opens the link's target would not look."""
    if options.path.is_symlink():
        raise InputError(
            f"{options.path} is a link, and the model needs a file of external data",
            hint="name the file that the link leads to",
        )


def _externalize(model: onnx.ModelProto, folder: Path, location: str) -> tuple[onnx.ModelProto, Path]:
    external = onnx.ModelProto()
    external.CopyFrom(model)
    external_data_helper.convert_model_to_external_data(
        external, all_tensors_to_one_file=True, location=location, size_threshold=INLINE_BYTES
    )
    return external_data_helper.write_external_data_tensors(external, os.fspath(folder)), folder / location


def publish(staged: Sequence[Path], target_folder: Path, stale: Sequence[Path] = ()) -> None:
    """Rename every staged file over the older one of its name; when one rename fails, put the older files back.

    A link is followed: the file that it names is replaced. ``stale`` names files of an older export that would
    contradict the new one; they go last.

    At every instant each path holds a whole file, the older or the new one. A kill (SIGTERM, SIGKILL) between two
    renames leaves new files beside older ones: a new model beside the older certificate, or, with external data, the
    older model beside new data. Neither agrees with the certificate, and another export repairs both. The private
    folder, a dot, the model's name and eight characters, is left behind too, and may be deleted.
    """
    backup = staged[0].parent / "previous"
    backup.mkdir()
    finals = {path: Path(os.path.realpath(target_folder / path.name)) for path in staged}
    older = {final: backup / str(k) for k, final in enumerate([*finals.values(), *stale]) if final.exists()}
    try:
        for final, kept in older.items():
            _keep(final, kept)
        for path, final in finals.items():
            os.replace(path, final)
        for final in stale:
            final.unlink(missing_ok=True)
    except BaseException as error:
        moved = [final for path, final in finals.items() if not path.exists()]
        _put_back(older, [*moved, *(final for final in stale if not final.exists())])
        if isinstance(error, OSError):
            raise InputError(f"cannot write to {target_folder}: {error.strerror}", hint=_way_out(error)) from error
        raise


def _keep(file: Path, kept: Path) -> None:
    """A second name for ``file``, or a copy where the file system has no hard links."""
    try:
        os.link(file, kept)
    except OSError:
        shutil.copy2(file, kept)


def _put_back(older: Mapping[Path, Path], finals: Sequence[Path]) -> None:
    for final in finals:
        if final in older:
            os.replace(older[final], final)
        else:
            final.unlink(missing_ok=True)


def _way_out(error: OSError) -> str:
    across = error.errno == errno.EXDEV
    return "name the file that the link leads to: it is on another file system" if across else "choose another folder"
