"""What an operator is: its name, attributes and inputs, its meaning in NumPy, its body in standard ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnx

DOMAIN = "lipdeploy"
VERSION = 1

AttributeValue = int | float


@dataclass(frozen=True)
class Attribute:
    """One attribute: ``default`` is ``None`` where a file must write it; ``accepts`` says which values are valid."""

    name: str
    kind: Literal["int", "float"]
    default: AttributeValue | None
    accepts: Callable[[AttributeValue], bool]
    valid: str

    def check(self, operator: str, value: object) -> AttributeValue:
        """Return the value in the attribute's own type.

        Floats are rounded to float32, as an ONNX file stores them. Raises ValueError for a value of another kind or
        out of range.
        """
        number = self._convert(value)
        if number is None or not self.accepts(number):
            raise ValueError(f"{operator}: attribute '{self.name}' must be {self.valid}, found {value!r}")
        return number

    def _convert(self, value: object) -> AttributeValue | None:
        if isinstance(value, bool | np.bool_):
            return None
        if self.kind == "int":
            return int(value) if isinstance(value, int | np.integer) and -(2**63) <= int(value) < 2**63 else None
        if not isinstance(value, int | float | np.integer | np.floating):
            return None
        with np.errstate(over="ignore"):
            stored = float(np.float32(value))
        return stored if math.isfinite(stored) else None


class BodyBuilder(Protocol):
    """Writes an operator's function body; see ``lipdeploy.ops.bodies`` for the arguments."""

    def __call__(
        self, uses: tuple[Mapping[str, AttributeValue], ...], element_types: frozenset[int], opset: int
    ) -> list[onnx.NodeProto]:
        """Return the nodes from the operator's inputs to ``Y``."""
        ...


@dataclass(frozen=True)
class Operator:
    """One operator of the domain, version 1.

    ``evaluate(x, *constants, **attributes)`` is its meaning in NumPy, for float16, bfloat16 (``ml_dtypes``),
    float32 and float64; the CPU and CUDA kernels agree with it bit for bit. ``build_body`` writes the same function
    in standard ONNX operators.
    """

    name: str
    attributes: tuple[Attribute, ...]
    inputs: tuple[str, ...]
    evaluate: Callable[..., np.ndarray[Any, Any]]
    build_body: BodyBuilder

    def complete(self, given: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
        """Fill in the defaults and check every value.

        ``given`` are the attributes that a node writes. Raises ValueError for an unknown attribute, a missing
        required one, a value of the wrong kind or out of range.
        """
        known = {attribute.name for attribute in self.attributes}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"{self.name}: unknown attribute '{unknown[0]}', known are {', '.join(sorted(known))}")
        completed = {}
        for attribute in self.attributes:
            value = given.get(attribute.name, attribute.default)
            if value is None:
                raise ValueError(f"{self.name}: attribute '{attribute.name}' is required")
            completed[attribute.name] = attribute.check(self.name, value)
        return completed


def integer(name: str, default: int, accepts: Callable[[AttributeValue], bool], valid: str) -> Attribute:
    """An integer attribute with a default."""
    return Attribute(name, "int", default, accepts, valid)


def required_float(name: str, accepts: Callable[[AttributeValue], bool], valid: str) -> Attribute:
    """A float attribute that every node must write."""
    return Attribute(name, "float", None, accepts, valid)


def normal_axis(axis: int, rank: int, operator: str) -> int:
    """Axis counted from the front. Raises ValueError when the tensor has no such axis."""
    if not -rank <= axis < rank:
        raise ValueError(f"{operator}: axis {axis} does not exist in a tensor of rank {rank}")
    return axis % rank


def canonical_nan(dtype: np.dtype[Any]) -> Any:
    """The positive quiet NaN with empty payload, as a scalar of this type."""
    return np.full((), np.nan, dtype=dtype)[()]
