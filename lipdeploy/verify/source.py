"""Reads a model file, and the external data it names, strictly and once.

What is returned here is what gets hashed, verified and handed to the runtime: nobody opens the files again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, TensorProto

from lipdeploy.errors import InputError, Refusal, Refused

MODEL_BYTES_LIMIT = 2**31 - 1  # protobuf's own limit
EXTERNAL_BYTES_LIMIT = 64 * 2**30
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})


@dataclass(frozen=True)
class Source:
    """One model, read into memory: the file's bytes, its external files' bytes, and the parsed model.

    ``proto`` has every external tensor inlined as raw data, so it needs no file any more.
    """

    path: str
    model_bytes: bytes
    external: Mapping[str, bytes]
    proto: ModelProto
    file_sha256: str
    external_sha256: Mapping[str, str] = field(default_factory=dict)


def read_source(model: str | os.PathLike[str] | bytes, *, external: Mapping[str, bytes] | None = None) -> Source:
    """Read ``model`` (a path, or the bytes of a file with its ``external`` files' bytes).

    Raises ``InputError`` when there is no readable ONNX model, ``Refused`` (LIP012) when its external data is not
    beside it in regular files of the stated size and checksum.
    """
    source, refused = read_as_far(model, external=external)
    if refused is not None:
        raise refused
    return source


def read_as_far(
    model: str | os.PathLike[str] | bytes, *, external: Mapping[str, bytes] | None = None
) -> tuple[Source, Refused | None]:
    """What ``read_source`` returns; or the files that were read, and why external data is refused.

    Files of a refused model have digests, too: whether they are those that were certified is another question.
    """
    if not isinstance(model, str | os.PathLike | bytes):
        hint = "a path, or bytes: model.SerializeToString() of an onnx.ModelProto"
        raise InputError(f"cannot read a model from a {type(model).__name__}", hint=hint)
    if isinstance(model, bytes):
        path, data, folder = "<bytes>", model, None
    else:
        path, data = os.fspath(model), read_file(Path(model), MODEL_BYTES_LIMIT)
        folder = Path(model).resolve().parent
    proto = _parse(path, data)
    files = dict(external or {})
    refused = _inline_all(proto, folder, files)
    source = Source(
        path=path,
        model_bytes=data,
        external=files,
        proto=proto,
        file_sha256=hashlib.sha256(data).hexdigest(),
        external_sha256={name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    )
    return source, refused


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored anywhere in the model: initialisers and attributes, subgraphs and functions included."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)
        yield from _attribute_tensors(function.attribute_proto)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file; ``InputError`` when there is none, it cannot be read, or it is above ``limit``."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: not a regular file", hint="give the path of an .onnx file")
            if status.st_size > limit:
                raise InputError(f"{path}: larger than {limit} bytes", hint="store the weights as external data")
            data = file.read(status.st_size)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", hint="check the path and its permissions") from error
    if len(data) != status.st_size:
        raise InputError(f"{path}: changed while it was read", hint="try again when nobody writes to it")
    return data


def _parse(path: str, data: bytes) -> ModelProto:
    hint = "export it again, or check that the file was copied whole"
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX model (it does not parse, or is cut off)", hint=hint) from error
    if not proto.ir_version or not proto.opset_import or not proto.graph.output:
        raise InputError(f"{path}: not an ONNX model (no IR version, operator sets or outputs)", hint=hint)
    if not _is_text(proto):
        raise InputError(f"{path}: not an ONNX model (a name in it is not UTF-8 text)", hint=hint)
    return proto


def _is_text(message: Message) -> bool:
    """Whether every string is text: protobuf hands out other strings as bytes."""
    for entry, value in message.ListFields():
        values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
        if entry.type == FieldDescriptor.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if entry.type == FieldDescriptor.TYPE_MESSAGE and not all(_is_text(part) for part in values):
            return False
    return True


def _inline_all(proto: ModelProto, folder: Path | None, files: dict[str, bytes]) -> Refused | None:
    """Store external data in the model, and what was read in ``files``; the first reason to refuse ends it."""
    checksums = dict[str, str]()
    try:
        for tensor in tensors(proto):
            if tensor.data_location == TensorProto.EXTERNAL:
                _inline(tensor, folder, files, checksums)
    except Refused as refused:
        return refused
    return None


def _inline(tensor: TensorProto, folder: Path | None, files: dict[str, bytes], checksums: dict[str, str]) -> None:
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    stated = dict(entries)
    unknown = set(stated) - EXTERNAL_KEYS
    if unknown or len(stated) != len(entries) or "location" not in stated:
        raise _refused(tensor, f"external data has missing, duplicate or unknown keys {sorted(unknown)}")
    content = _external_file(tensor, stated["location"], folder, files)
    offset = _digits(tensor, stated.get("offset", "0"))
    length = _digits(tensor, stated["length"]) if "length" in stated else len(content) - offset
    if length < 0 or offset + length > len(content):
        raise _refused(tensor, f"bytes {offset} to {offset + length} lie outside '{stated['location']}'")
    if "checksum" in stated and stated["checksum"].lower() != _sha1(stated["location"], content, checksums):
        raise _refused(tensor, f"'{stated['location']}' does not have the SHA-1 checksum that the model states")
    tensor.raw_data = content[offset : offset + length]
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _sha1(location: str, content: bytes, known: dict[str, str]) -> str:
    """ONNX's checksum of an external file, computed once for all tensors in it; integrity is SHA-256's task."""
    if location not in known:
        known[location] = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return known[location]


def _digits(tensor: TensorProto, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _refused(tensor, f"offset and length of external data must be plain numbers, not {text!r}")
    return int(text)


def _external_file(tensor: TensorProto, location: str, folder: Path | None, files: dict[str, bytes]) -> bytes:
    if location in files:
        return files[location]
    parts = PurePosixPath(location).parts
    if not parts or "\\" in location or "\0" in location or ".." in parts or PurePosixPath(location).is_absolute():
        raise _refused(tensor, f"external data path '{location}' leaves the model's folder")
    if folder is None:
        raise _refused(tensor, f"external data '{location}' was not handed over with the model's bytes")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise _refused(tensor, f"external data '{location}' goes through a symbolic link")
    budget = EXTERNAL_BYTES_LIMIT - sum(map(len, files.values()))
    try:
        files[location] = read_file(path, budget)
    except InputError as error:
        raise _refused(tensor, f"external data cannot be read: {error.message}") from error
    return files[location]


def _refused(tensor: TensorProto, message: str) -> Refused:
    return Refused([Refusal("LIP012", tensor.name, "", message)])
