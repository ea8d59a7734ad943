"""Rules for images of open height and width: gains that hold for every size.

A rule that acts entry by entry, or along axes of known size, is asked about images of one size, because its gain
depends on none. The rounding of a run is unknown for open sizes: the guarantee is about the network only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from lipdeploy.verify.bound import ONE, UNBOUNDED, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.norms import Norm, diagonal, per_norm
from lipdeploy.verify.open_resizing import resize
from lipdeploy.verify.open_sizes import OpenSize
from lipdeploy.verify.open_windows import average_pool, convolution, max_pool, transposed_convolution
from lipdeploy.verify.rounding import sqrt_up
from lipdeploy.verify.rules import RULES
from lipdeploy.verify.rules.pooling import pooled_shape
from lipdeploy.verify.rules.structure import pad_fill, padded_positions, pads_per_axis
from lipdeploy.verify.step import Step

SURROGATE = 7  # the size at which a rule that depends on no size is asked


def judge_open(call: Call) -> list[Step]:
    """The steps of a node with an open image among its inputs. Raises ``Refused``."""
    own = OPEN_RULES.get((call.domain, call.op))
    if own is not None:
        RULES[call.domain, call.op].refuse_unknown(call)
        return [_network_only(step) for step in own(call)]
    if (call.domain, call.op) not in SIZE_FREE:
        hint = "fix height and width when the model is exported"
        raise call.refuse("LIP006", "has no rule for images of open height or width", hint)
    return [_network_only(step) for step in _at_one_size(call)]


def _network_only(step: Step) -> Step:
    """Without a size there is no bound of ‖h(0)‖ and none of the rounding."""
    return replace(step, at_zero={norm: UNBOUNDED for norm in Norm}, rounding=None)


#: Operators whose gain does not depend on the sizes of the axes that they leave alone.
SIZE_FREE = frozenset(
    {("", op) for op in (
        "Relu", "Abs", "Neg", "Clip", "LeakyRelu", "PRelu", "Tanh", "Sigmoid", "Softplus", "Softsign", "Erf", "Sin",
        "Cos", "Atan", "Asinh", "Mish", "Gelu", "Elu", "Selu", "HardSwish", "Celu", "HardSigmoid", "Dropout",
        "Identity", "Cast", "Add", "Sub", "Sum", "Mul", "Div", "Max", "Min", "BatchNormalization", "Concat", "Split",
    )} | {("lipdeploy", op) for op in ("GroupSort", "LinearSpline", "Householder")}
)  # fmt: skip
#: Of these, the ones whose operands broadcast …
BROADCASTING = frozenset({"Add", "Sub", "Sum", "Mul", "Div", "Max", "Min", "PRelu"})
#: … and the ones that act along one axis, with its default.
ALONG = {"Concat": None, "Split": 0, "GroupSort": 1, "LinearSpline": 1, "Householder": 1}


def _at_one_size(call: Call) -> list[Step]:
    """Ask the ordinary rule about images of one size, and put the open sizes back."""
    shapes = [flow.shape for flow in call.flows()]
    shape = shapes[0]
    if call.op in BROADCASTING:
        _check_operands(call, shapes)
    if call.op in ALONG:
        axis = call.axis("axis", ALONG[call.op], len(shape) + 1)
        if axis == 0 or isinstance(shape[axis - 1], OpenSize):
            raise call.refuse("LIP006", f"acts along axis {axis}, which is not one of known size")
        if {_open_part(other) for other in shapes} != {_open_part(shape)}:
            raise call.refuse("LIP006", "its images may have different sizes")
    asked = call.with_inputs([_surrogate(value) for value in call.inputs], call.batch)
    return [replace(step, shape=_put_back(call, step.shape, shape)) for step in RULES[call.domain, call.op](asked)]


def _open_part(shape: Sequence[object]) -> tuple[object, ...]:
    return (len(shape), *((axis, size) for axis, size in enumerate(shape) if isinstance(size, OpenSize)))


def _check_operands(call: Call, shapes: Sequence[tuple[int, ...]]) -> None:
    """An open size may be 1: what meets it must be a constant that is 1 there, or an image of exactly that size."""
    if len(set(shapes)) > 1:
        raise call.refuse("LIP006", "its operands may have different sizes, so that one would be copied")
    for value in map(call.optional, range(len(call.inputs))):
        if isinstance(value, Constant):
            meets = zip(reversed(value.array.shape), reversed(shapes[0]), strict=False)
            if any(isinstance(size, OpenSize) and length != 1 for length, size in meets):
                raise call.refuse("LIP006", f"a constant of shape {list(value.array.shape)} meets an open size")


def _surrogate(value: Any) -> Any:
    if not isinstance(value, Flow):
        return value
    return replace(value, shape=tuple(SURROGATE if isinstance(size, OpenSize) else size for size in value.shape))


def _put_back(call: Call, shape: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != len(before) or any(
        isinstance(old, OpenSize) and new != SURROGATE for new, old in zip(shape, before, strict=True)
    ):
        raise call.refuse("LIP006", "changes an open size in a way that has no rule")
    return tuple(old if isinstance(old, OpenSize) else new for new, old in zip(shape, before, strict=True))


def _global_pool(call: Call) -> list[Step]:
    """The maximum of n ≥ 1 entries, 1 in every norm, or their mean: 1/√n ≤ 1, 1, 1/n ≤ 1. Channels may be open, too."""
    shape, rule = pooled_shape(call), "maximum" if call.op == "GlobalMaxPool" else "mean, any size"
    return [Step((shape[0], *(1 for _ in shape[1:])), (diagonal(ONE),), rule, rounding=None)]


def _reduction(call: Call) -> list[Step]:
    """Mean, maximum, minimum over any number of entries: at most 1 in every norm."""
    shape = call.flow().shape
    constant = call.constant(1)
    given = call.integers("axes", ()) if constant is None else [int(n) for n in constant.array.reshape(-1)]
    axes = {call.resolve_axis(axis, len(shape) + 1) for axis in given}
    if not axes or 0 in axes:
        raise call.refuse("LIP005", "reduces the batch axis")
    if min(given) < 0 and any(isinstance(size, OpenSize) and size.may_be_empty for size in shape):
        message = "counts axes from the end of an image that may be empty, of which ONNX Runtime reduces others"
        raise call.refuse("LIP006", message, "count the axes from the front (2, 3), or fix height and width")
    keep = call.integer("keepdims", 1)
    kept = tuple(1 if i + 1 in axes else n for i, n in enumerate(shape) if keep or i + 1 not in axes)
    return [Step(kept, (diagonal(ONE),), "mean or extremum, any size", rounding=None)]


def _pad(call: Call) -> list[Step]:
    """Constants around an image: 1. Edge padding shows an entry at most 1 + begin + end times per axis: √, 1, ×."""
    flow, mode = call.flow(0), call.string("mode", "constant")
    if mode not in ("constant", "edge"):
        raise call.refuse("LIP006", f"mode='{mode}' is not defined for images that are smaller than the pads")
    pad_fill(call)
    copies, shape = 1, []
    for size, (begin, end) in zip(flow.shape, pads_per_axis(call, len(flow.shape) + 1), strict=True):
        if not isinstance(size, OpenSize):
            positions = padded_positions(call, size, begin, end, mode)
            shape.append(len(positions))
            copies *= 1 if mode == "constant" else 1 + begin + end
            continue
        if min(begin, end) < 0:
            raise call.refuse("LIP006", "negative pads may leave nothing of an image whose size is open")
        shape.append(cast("int", size.after("window", begin + end - 1, 1) if begin + end else size))
        copies *= 1 if mode == "constant" else 1 + begin + end
    gains = per_norm(Bound(float(copies)), Bound(sqrt_up(float(copies))), ONE)
    return [Step(tuple(shape), (gains,), f"{mode} padding, any size", rounding=None)]


OPEN_RULES: dict[tuple[str, str], Callable[[Call], list[Step]]] = {
    ("", "Conv"): convolution,
    ("", "ConvTranspose"): transposed_convolution,
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "GlobalAveragePool"): _global_pool,
    ("", "GlobalMaxPool"): _global_pool,
    ("", "ReduceMean"): _reduction,
    ("", "ReduceMax"): _reduction,
    ("", "ReduceMin"): _reduction,
    ("", "Pad"): _pad,
    ("", "Resize"): resize,
}
