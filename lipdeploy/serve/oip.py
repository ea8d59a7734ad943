"""The Open Inference Protocol v2 as bytes: requests in, answers out. No framework, no model, no opinion on values.

JSON tensors are flat or nested, row-major. Binary tensors (extension ``binary_tensor_data``) follow the JSON part,
whose length the header ``Inference-Header-Content-Length`` says; that header alone decides, whatever the content type.
Length 0 is a raw request: the body is the one tensor. Sizes are checked before a single array is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import orjson

from lipdeploy.serve.problems import RequestProblem, bad
from lipdeploy.verify.rounding import up

Array = np.ndarray[Any, Any]

#: Element types by their names on the wire.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
SIZES = {**{name: dtype.itemsize for name, dtype in DTYPES.items()}, "BF16": 2}
#: What JSON values an element type takes.
KINDS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
BINARY_ONLY = ("FP16", "BF16")
MAX_RANK = 16
MAX_SIZE = 2**40
MAX_INPUTS = 64
MAX_ID = 1024
CACHED_HEAD = 2048  # bytes: clients that send tensors in binary repeat the same few heads
PREFIX = "lipdeploy_"
WHOLE = "the request"
NUMBER = re.compile(r"(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?|\d{1,20}/\d{1,20}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
LENGTH = re.compile(rb"\d{1,15}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as it came: ``values`` in ``shape``; ``size`` bytes follow the JSON part while values are ``None``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One output that was asked for, and how."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request without its transport.

    ``outputs`` is ``None`` where none were named: then all that a model gives by default, in binary as ``binary``
    says. ``epsilon``, ``certificate`` (a digest that must match) and ``timeout`` (seconds) come from its parameters.
    ``raw`` is the body of a raw request, whose tensor only the model can describe.
    """

    tensors: tuple[Tensor, ...]
    id: str | None = None
    outputs: tuple[Output, ...] | None = None
    binary: bool = False
    epsilon: float | None = None
    certificate: str | None = None
    timeout: float | None = None
    raw: memoryview | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out, without its transport: outputs as (name, datatype, values) in the order that was asked for.

    ``prefix`` is the beginning of the JSON object (model, version), ``parameters`` the object of flat strings.
    """

    prefix: bytes
    parameters: bytes
    id: str | None
    outputs: Sequence[tuple[str, str, Array]]


# Requests.


def parse(body: bytes | bytearray, head_length: int | None = None) -> InferenceRequest:
    """The request in an HTTP body. Raises ``RequestProblem`` (400) for anything that is not one.

    Binary tensors are views of ``body``, which must not change from now on.

    ``head_length`` is the value of ``Inference-Header-Content-Length``, ``None`` where the header is missing.
    """
    if head_length is None:
        return _parse_head(body, binary=False)
    if head_length == 0:
        return InferenceRequest((), binary=True, raw=memoryview(body))
    if head_length > len(body):
        raise bad(f"Inference-Header-Content-Length is {head_length}, and the body has {len(body)} bytes")
    head = bytes(body[:head_length])
    known = _cached_head(head) if head_length <= CACHED_HEAD else _parse_head(head, binary=True)
    tensors = _with_bytes(known.tensors, body, head_length)
    return InferenceRequest(
        tensors, known.id, known.outputs, known.binary, known.epsilon, known.certificate, known.timeout
    )


def head_length(value: bytes) -> int:
    """The number in an ``Inference-Header-Content-Length`` header."""
    if not LENGTH.fullmatch(value):
        raise bad("Inference-Header-Content-Length is not a number of bytes")
    return int(value)


def with_raw(request: InferenceRequest, name: str, datatype: str, shape: Sequence[int]) -> InferenceRequest:
    """A raw request, now that its only input is known: one row of ``shape``."""
    assert request.raw is not None
    expected = math.prod(shape) * SIZES[datatype]
    if len(request.raw) != expected:
        raise bad(f"a raw request holds one row of '{name}': {expected} bytes, not {len(request.raw)}")
    values = from_bytes(request.raw, datatype, (1, *shape), 0)
    return replace(request, tensors=(Tensor(name, datatype, (1, *shape), values),), raw=None)


def from_bytes(data: Any, datatype: str, shape: Sequence[int], offset: int) -> Array:
    """Little-endian values that were counted before; aligned, so copied where the sender did not care."""
    kind = dtype_of(datatype)
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8, math.prod(shape), offset)
        if flags.size and flags.max() > 1:
            raise bad("a BOOL is a byte 0 or 1")
        return flags.view(np.bool_).reshape(shape)
    wire = kind.newbyteorder("<") if kind.kind in "iuf" else kind
    values = np.frombuffer(data, wire, math.prod(shape), offset)
    if not values.flags.aligned or values.dtype != kind:
        values = values.astype(kind)
    return values.reshape(shape)


def dtype_of(datatype: str) -> np.dtype[Any]:
    """NumPy's type for a datatype of the protocol."""
    if datatype == "BF16":
        import ml_dtypes

        brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return brain
    return DTYPES[datatype]


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's datatype for NumPy's type."""
    if dtype.name == "bfloat16":
        return "BF16"
    return next(name for name, known in DTYPES.items() if known == dtype)


def _with_bytes(tensors: Sequence[Tensor], body: bytes | bytearray, offset: int) -> tuple[Tensor, ...]:
    complete = []
    for tensor in tensors:
        if tensor.values is None:
            if offset + tensor.size > len(body):
                raise bad(f"input '{tensor.name}': the body ends before its {tensor.size} bytes")
            values = from_bytes(body, tensor.datatype, tensor.shape, offset)
            complete.append(Tensor(tensor.name, tensor.datatype, tensor.shape, values))
            offset += tensor.size
        else:
            complete.append(tensor)
    if offset != len(body):
        raise bad(f"{len(body) - offset} bytes follow the last tensor")
    return tuple(complete)


@lru_cache(maxsize=256)
def _cached_head(head: bytes) -> InferenceRequest:
    return _parse_head(head, binary=True)


def _parse_head(head: bytes | bytearray, *, binary: bool) -> InferenceRequest:
    content = _object(json_value(head), "the request")
    no_guarantees(content, "the object")
    parameters = _parameters(content, WHOLE)
    everything_binary = _flag(parameters, "binary_data_output", False)
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or not 0 < len(inputs) <= MAX_INPUTS:
        raise bad(f"'inputs' must be a list of 1 to {MAX_INPUTS} tensors")
    tensors = tuple(_tensor(entry, binary) for entry in inputs)
    _no_twins([tensor.name for tensor in tensors], "input")
    return InferenceRequest(
        tensors=tensors,
        id=_id(content),
        outputs=_outputs(content, everything_binary),
        binary=everything_binary,
        **read_parameters(parameters),
    )


def json_value(data: bytes | bytearray) -> Any:
    """Strict JSON: UTF-8, finite numbers, at most 1024 levels."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        why = "; NaN and infinity are not JSON, and values must be finite" if b"NaN" in data or b"Inf" in data else ""
        raise bad(f"not JSON: {error}{why}") from None
    except RecursionError:
        raise bad("not JSON: too deeply nested") from None


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``epsilon``, ``certificate`` and ``timeout`` of a request, REST or gRPC. An unknown ``lipdeploy_`` name is an
    error: a guarantee must not be lost to a typing mistake.
    """
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "lipdeploy_epsilon":
            found["epsilon"] = epsilon(value)
        elif name == "lipdeploy_require_certificate":
            found["certificate"] = _digest(value)
        elif name == "timeout":
            found["timeout"] = _timeout(value)
        elif is_ours(name):
            raise bad(f"unknown parameter '{name}'; there are lipdeploy_epsilon and lipdeploy_require_certificate")
        elif name in ("sequence_id", "sequence_start", "sequence_end") and value not in (0, "", False):
            raise bad("sequences are not offered")
    return found


def is_ours(name: str) -> bool:
    """Whether a parameter is meant for us, also where a capital or a hyphen is none of ours."""
    return name.lower().replace("-", "_").startswith(PREFIX)


def epsilon(value: Any) -> float:
    """A radius ≥ 0 as a string (``"0.1"``, ``"8/255"``: read exactly, rounded up) or a number, which is a binary64."""
    if isinstance(value, str):
        if not NUMBER.fullmatch(value) or value.endswith("/0"):
            raise bad("lipdeploy_epsilon is not a number ≥ 0")
        return _float_up(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise bad("lipdeploy_epsilon must be finite and not negative")
    return _float_up(str(value)) if isinstance(value, int) else value


def _float_up(text: str) -> float:
    try:
        exact = Fraction(text)
        nearest = float(exact)
    except (OverflowError, ZeroDivisionError):
        raise bad("lipdeploy_epsilon must be finite") from None
    return nearest if Fraction(nearest) >= exact else up(nearest)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise bad("lipdeploy_require_certificate must be 64 lower-case hexadecimal digits")
    return value


def _timeout(value: Any) -> float | None:
    """Microseconds, as Triton counts; 0 is no limit."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise bad("'timeout' must be a whole number of microseconds")
    return value / 1e6 if value else None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(f"{what} must be a JSON object")
    return value


def _parameters(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    given = _object(parameters, f"'parameters' of {what}")
    if what != WHOLE:
        no_guarantees(given, what)
    for name, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise bad(f"parameter '{name}' of {what} must be a string, a number or a boolean")
    return given


def no_guarantees(names: Iterable[str], what: str) -> None:
    """Raise for a parameter that is one of the whole request: elsewhere it would be lost, and a guarantee with it."""
    for name in names:
        if is_ours(name):
            raise bad(f"'{name}' of {what} belongs into the parameters of the request")


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad(f"parameter '{name}' must be true or false")
    return value


def _id(content: Mapping[str, Any]) -> str | None:
    value = content.get("id")
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_ID:
        raise bad(f"'id' must be a string of at most {MAX_ID} characters")
    return value


def _outputs(content: Mapping[str, Any], binary: bool) -> tuple[Output, ...] | None:
    wanted = content.get("outputs")
    if wanted is None or wanted == []:
        return None
    if not isinstance(wanted, list) or len(wanted) > MAX_INPUTS:
        raise bad("'outputs' must be a list of at most 64 outputs")
    found = []
    for entry in wanted:
        output = _object(entry, "an output")
        name = _name(output, "an output")
        parameters = _parameters(output, f"output '{name}'")
        if parameters.get("classification") or "shared_memory_region" in parameters:
            raise bad(f"output '{name}': classification and shared memory are not offered")
        found.append(Output(name, _flag(parameters, "binary_data", binary)))
    _no_twins([output.name for output in found], "output")
    return tuple(found)


def _name(entry: Mapping[str, Any], what: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise bad(f"{what} has no name")
    return name


def _no_twins(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        raise bad(f"{what} '{next(name for name in names if names.count(name) > 1)}' is there twice")


def _tensor(entry: Any, binary: bool) -> Tensor:
    content = _object(entry, "an input")
    name = _name(content, "an input")
    datatype, shape = _datatype(name, content.get("datatype")), _shape(name, content.get("shape"))
    parameters = _parameters(content, f"input '{name}'")
    if "shared_memory_region" in parameters:
        raise bad(f"input '{name}': shared memory is not offered")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in content):
        raise bad(f"input '{name}' needs either 'data' or the parameter 'binary_data_size'")
    if size is None:
        return Tensor(name, datatype, shape, _values(name, datatype, shape, content["data"]))
    if not binary:
        raise bad(f"input '{name}': binary data needs the header Inference-Header-Content-Length")
    expected = math.prod(shape) * SIZES[datatype]
    if type(size) is not int or size != expected:
        raise bad(f"input '{name}': binary_data_size is {size!r}, and {datatype} {list(shape)} takes {expected} bytes")
    return Tensor(name, datatype, shape, None, expected)


def _datatype(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in SIZES:
        raise bad(f"input '{name}': datatype {value!r} is not offered; known are {', '.join(SIZES)}")
    return value


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise bad(f"input '{name}': 'shape' must be a list of at most {MAX_RANK} sizes")
    if not all(type(size) is int and 0 <= size <= MAX_SIZE for size in value):
        raise bad(f"input '{name}': 'shape' must hold whole numbers ≥ 0")
    return tuple(value)


def _values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """``data``, flat or nested as ``shape`` says, in the element type."""
    if datatype in BINARY_ONLY:
        raise bad(f"input '{name}': {datatype} has no JSON form; send it in binary")
    if not isinstance(data, list):
        raise bad(f"input '{name}': 'data' must be a list")
    flat, nested = _flattened(name, data)
    if len(flat) != math.prod(shape) or nested not in (shape, (len(flat),)):
        found = f"{len(flat)} values" if len(nested) == 1 else f"data of shape {list(nested)}"
        raise bad(f"input '{name}': shape {list(shape)}, and {found}")
    return _array(name, datatype, flat).reshape(shape)


def arrays_of(tensors: Sequence[tuple[str, str, Sequence[int], Any]]) -> dict[str, Array]:
    """Inputs by name, of (name, datatype, shape, data) as a host took them from its own transport: data in a list.

    FP16, which JSON cannot give exactly, may come so where every value is a float16. Raises ``RequestProblem`` (400).
    """
    _no_twins([name for name, *_ in tensors], "input")
    found = {}
    for name, datatype, sizes, data in tensors:
        shape = _shape(name, list(sizes))
        read_as = "FP64" if _datatype(name, datatype) == "FP16" else datatype
        values = _values(name, read_as, shape, data)
        with np.errstate(over="ignore"):
            found[name] = values.astype(DTYPES[datatype])
        if read_as != datatype and not np.array_equal(found[name], values):
            raise bad(f"input '{name}': a value is not a float16 number")
    return found


def _flattened(name: str, data: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    shape = [len(data)]
    while data and type(data[0]) is list:
        lengths = {len(part) if type(part) is list else -1 for part in data}
        if len(lengths) != 1 or len(shape) == MAX_RANK:
            raise bad(f"input '{name}': 'data' is nested unevenly or too deeply")
        shape.append(lengths.pop())
        data = list(chain.from_iterable(data))
    return data, tuple(shape)


def _array(name: str, datatype: str, flat: list[Any]) -> Array:
    dtype, kinds = DTYPES[datatype], set(map(type, flat))
    allowed = KINDS[dtype.kind]
    if not kinds <= allowed:
        found = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
        raise bad(f"input '{name}': {datatype} data holds {found}")
    if dtype.kind in "iu" and flat and not np.iinfo(dtype).min <= min(flat) <= max(flat) <= np.iinfo(dtype).max:
        raise bad(f"input '{name}': a value does not fit into {datatype}")
    try:
        with np.errstate(over="ignore"):
            values = np.array(flat, np.float64 if dtype.kind == "f" else dtype).astype(dtype)
    except OverflowError:
        raise bad(f"input '{name}': a value does not fit into {datatype}") from None
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise bad(f"input '{name}': a value does not fit into {datatype}; every value must be finite")
    return values


# Answers.


def encode(answer: Answer, binary: Sequence[bool]) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON part (``None``: all of it). ``binary`` says which outputs
    go behind the JSON part. Numbers in JSON read back as the same numbers, so that no radius grows on the way.
    """
    identity = b"" if answer.id is None else b',"id":' + orjson.dumps(answer.id)
    if all(binary):
        entries = _binary_entries(tuple((name, kind, values.shape) for name, kind, values in answer.outputs))
    else:
        entries = b",".join(map(_entry, answer.outputs, binary))
    head = b"".join((answer.prefix, identity, b',"parameters":', answer.parameters, b',"outputs":[', entries, b"]}"))
    if not any(binary):
        return head, None
    tails = [values.tobytes() for (_, _, values), follows in zip(answer.outputs, binary, strict=True) if follows]
    return b"".join((head, *tails)), len(head)


@lru_cache(maxsize=1024)
def _binary_entries(outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    return b",".join(_described(*output, size=math.prod(output[2]) * SIZES[output[1]]) for output in outputs)


def _described(name: str, datatype: str, shape: Sequence[int], **more: Any) -> bytes:
    entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    if "size" in more:
        entry["parameters"] = {"binary_data_size": more["size"]}
    else:
        entry["data"] = more["data"]
    return orjson.dumps(entry)


def _entry(output: tuple[str, str, Array], binary: bool) -> bytes:
    name, datatype, values = output
    if binary:
        return _described(name, datatype, values.shape, size=values.size * SIZES[datatype])
    if datatype in BINARY_ONLY:
        raise bad(f"output '{name}': {datatype} has no JSON form; ask for it in binary")
    return _described(name, datatype, values.shape, data=values.ravel().tolist())


__all__ = [
    "Answer",
    "InferenceRequest",
    "Output",
    "RequestProblem",
    "Tensor",
    "arrays_of",
    "datatype_of",
    "dtype_of",
    "encode",
    "epsilon",
    "from_bytes",
    "head_length",
    "json_value",
    "no_guarantees",
    "parse",
    "read_parameters",
    "with_raw",
]
