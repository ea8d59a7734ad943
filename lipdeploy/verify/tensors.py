"""What a stored tensor holds, where every reader makes the same numbers of it; else it is refused.

A tensor's numbers may be stored as bytes or in a field of larger ones, where they need not fit: 256 as a truth value is
false to NumPy, which keeps eight bits of it, and true to ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, numpy_helper

from lipdeploy.errors import Refusal, Refused
from lipdeploy.verify.graph import Constant, Numbers

FIELDS = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
BYTE, WORD = (0, 255), (0, 65535)  # of bit patterns
#: The numbers that stand for one entry, or for two of four bits, in the fields whose numbers are larger.
FITTING: Mapping[int, tuple[int, int]] = {
    TensorProto.BOOL: (0, 1),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: BYTE,
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: WORD,
    TensorProto.FLOAT16: WORD,
    TensorProto.BFLOAT16: WORD,
    TensorProto.INT4: BYTE,
    TensorProto.UINT4: BYTE,
    TensorProto.UINT32: (0, 2**32 - 1),
}
FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)


def read_constant(tensor: TensorProto) -> Constant:
    """A stored tensor as an exact array; refused (LIP003) when a float in it is not finite."""
    _check_storage(tensor)
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # onnx raises many types here; none of them is a verdict
        raise _refused(tensor, "LIP013", f"the stored tensor is malformed: {error}") from error
    if array.dtype.name in ("int4", "uint4"):  # NumPy knows them as bytes only
        array = array.astype(np.int8 if array.dtype.name == "int4" else np.uint8)
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if not floating and array.dtype.kind not in "iub":
        raise _refused(tensor, "LIP021", f"element type {array.dtype} is not supported")
    if floating:
        _check_finite(tensor, array)
    return Constant(tensor.name, array)


def _check_storage(tensor: TensorProto) -> None:
    if min(tensor.dims, default=0) < 0:
        raise _refused(tensor, "LIP013", f"negative size in {list(tensor.dims)}")
    if tensor.data_type == TensorProto.STRING:
        raise _refused(tensor, "LIP021", "text is not a number")
    used = [name for name in FIELDS if (tensor.HasField(name) if name == "raw_data" else len(getattr(tensor, name)))]
    if len(used) > 1:
        raise _refused(tensor, "LIP013", f"the tensor is stored twice, as {' and '.join(used)}")
    if tensor.data_type in FITTING:
        _check_fit(tensor, *FITTING[tensor.data_type])


def _check_fit(tensor: TensorProto, low: int, high: int) -> None:
    numbers = [*tensor.int32_data, *tensor.uint64_data]
    if numbers and not low <= min(numbers) <= max(numbers) <= high:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        raise _refused(tensor, "LIP013", f"numbers from {min(numbers)} to {max(numbers)} are stored as {kind}")
    if tensor.data_type == TensorProto.BOOL and tensor.raw_data.strip(b"\x00\x01"):
        raise _refused(tensor, "LIP013", "bytes other than 0 and 1 are stored as truth values")
    size, length = math.prod(tensor.dims), len(numbers) or len(tensor.raw_data)
    if tensor.data_type in FOUR_BITS and length != -(-size // 2):
        raise _refused(tensor, "LIP013", f"{length} bytes are stored for {size} numbers of four bits")


def _check_finite(tensor: TensorProto, array: Numbers) -> None:
    finite = np.isfinite(array.astype(np.float64))
    if not np.all(finite):
        count = int(np.size(array) - np.count_nonzero(finite))
        raise _refused(tensor, "LIP003", f"{count} of {array.size} stored numbers are NaN or infinite")


def _refused(tensor: TensorProto, code: str, message: str) -> Refused:
    return Refused([Refusal(code, tensor.name, "initializer", message)])
