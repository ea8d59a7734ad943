"""Images whose height and width the file leaves open: rules whose gains hold for every size.

A size that is not known is an ``OpenSize``: no number, so that arithmetic with it fails instead of proving something
about one size. Only the operators listed here take such images; everything else refuses them by name. A rule that acts
entry by entry, or along axes of known size, is asked about images of one size, because its gain depends on none. The
rounding of a run is unknown for open sizes: the guarantee is about the network only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from lipdeploy.verify.bound import ONE, UNBOUNDED, Bound
from lipdeploy.verify.graph import Call, Constant, Flow
from lipdeploy.verify.limits import check_convolution
from lipdeploy.verify.norms import Gains, Norm, diagonal, per_norm
from lipdeploy.verify.operator_norm import Convolution, ProofFailed
from lipdeploy.verify.operator_norm.symbol import Symbol, every_frequency_up
from lipdeploy.verify.rounding import div_up, sqrt_up
from lipdeploy.verify.rules import RULES
from lipdeploy.verify.rules.registry import FLAGS
from lipdeploy.verify.step import Step

SURROGATE = 7  # the size at which a rule that depends on no size is asked


@dataclass(frozen=True)
class OpenSize:
    """A whole number ≥ 1 that the file leaves open.

    ``source`` names one axis of one input, ``history`` what was done to its length since: two open sizes are equal only
    when they are the same function of the same length.
    """

    source: str
    history: tuple[tuple[str, int, int], ...] = ()

    def after(self, kind: str, first: int, second: int) -> OpenSize:
        """The size after one more operator."""
        return replace(self, history=(*self.history, (kind, first, second)))


def is_open(shape: Sequence[object]) -> bool:
    """Whether a shape has an axis of unknown size."""
    return any(isinstance(size, OpenSize) for size in shape)


def stated(shape: Sequence[object]) -> tuple[int | None, ...]:
    """A shape for reports: ``None`` where the size is open."""
    return tuple(None if isinstance(size, OpenSize) else cast("int", size) for size in shape)


def opened(name: str, dims: Sequence[int | None]) -> tuple[int, ...]:
    """The shape per sample of an input with open sizes: each axis of each input is a size of its own."""
    sizes = [OpenSize(f"{name}[{axis}]") if n is None else n for axis, n in enumerate(dims)]
    return cast("tuple[int, ...]", tuple(sizes[1:]))


def judge_open(call: Call) -> list[Step]:
    """The steps of a node with an open image among its inputs. Raises ``Refused``."""
    own = OPEN_RULES.get((call.domain, call.op))
    if own is not None:
        _refuse_unknown(call)
        return [_network_only(step) for step in own(call)]
    if (call.domain, call.op) not in SIZE_FREE:
        hint = "fix height and width when the model is exported"
        raise call.refuse("LIP006", "has no rule for images of open height or width", hint)
    return [_network_only(step) for step in _at_one_size(call)]


def _refuse_unknown(call: Call) -> None:
    """What every rule checks first, for the rules here."""
    unknown = sorted(set(call.attributes) - RULES[call.domain, call.op].attributes)
    for flag in sorted(FLAGS.intersection(call.attributes)):
        if call.integer(flag) not in (0, 1):
            raise call.refuse("LIP002", f"{flag} is {call.integer(flag)}, a flag is 0 or 1")
    if unknown or len(call.inputs) > RULES[call.domain, call.op].most_inputs or sum(map(bool, call.output_names)) > 1:
        raise call.refuse("LIP002", f"attribute '{unknown[0]}'" if unknown else "has more inputs or outputs than known")


def _network_only(step: Step) -> Step:
    """Without a size there is no bound of ‖h(0)‖ and none of the rounding."""
    return replace(step, at_zero={norm: UNBOUNDED for norm in Norm}, rounding=None)


#: Operators whose gain does not depend on the sizes of the axes that they leave alone.
SIZE_FREE = frozenset(
    {("", op) for op in (
        "Relu", "Abs", "Neg", "Clip", "LeakyRelu", "PRelu", "Tanh", "Sigmoid", "Softplus", "Softsign", "Erf", "Sin",
        "Cos", "Atan", "Asinh", "Mish", "Gelu", "Elu", "Selu", "HardSwish", "Celu", "HardSigmoid", "Dropout",
        "Identity", "Cast", "Add", "Sub", "Sum", "Mul", "Div", "Max", "Min", "BatchNormalization", "Concat", "Split",
        "GlobalMaxPool",
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
    pooled = call.op == "GlobalMaxPool"
    asked = call.with_inputs([_surrogate(value) for value in call.inputs], call.batch)
    return [
        step if pooled else replace(step, shape=_put_back(call, step.shape, shape))
        for step in RULES[call.domain, call.op](asked)
    ]


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


@dataclass(frozen=True)
class _Window:
    """A sliding window over an image some of whose sizes are open; ``shape`` is the output's.

    ``overhangs``: on which axes an image may be smaller than the window, and some runtime still makes an output.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padded: bool
    shape: tuple[int, ...]
    overhangs: tuple[bool, ...]


def _window(call: Call, image: tuple[Any, ...], kernel: tuple[int, ...]) -> _Window:
    axes = len(image)
    strides, dilations = call.integers("strides", (1,) * axes), call.integers("dilations", (1,) * axes)
    if not len(strides) == len(dilations) == len(kernel) == axes or min((*strides, *dilations, *kernel)) < 1:
        raise call.refuse("LIP013", f"strides, dilations and kernel must be {axes} positive numbers")
    if call.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.refuse("LIP006", "auto_pad depends on the image's size, which is open; state the pads")
    pads = call.integers("pads", (0,) * 2 * axes)
    if len(pads) != 2 * axes or min(pads) < 0 or (any(pads) and call.string("auto_pad", "NOTSET") == "VALID"):
        raise call.refuse("LIP002", f"pads {list(pads)} must be {2 * axes} numbers, none negative")
    sizes, overhangs = [], []
    for i, (size, k, s, d) in enumerate(zip(image, kernel, strides, dilations, strict=True)):
        grows = pads[i] + pads[i + axes] - (k - 1) * d - 1
        overhangs.append(isinstance(size, OpenSize) and s > 1 and 1 + grows < 0)
        if not isinstance(size, OpenSize):
            if size + grows < 0:
                raise call.refuse("LIP013", f"an axis of {size} is smaller than the window")
            sizes.append((size + grows) // s + 1)
        else:
            sizes.append(size if (grows, s) == (-1, 1) else size.after("window", grows, s))
    return _Window(kernel, strides, dilations, any(pads), cast("tuple[int, ...]", tuple(sizes)), tuple(overhangs))


def _convolution(call: Call) -> list[Step]:
    """‖conv‖ ≤ sup_w ‖K̂(w)‖ on images of every size (Lemma D7)."""
    flow, kernel = call.flow(0), call.required_constant(1).float64()
    groups = call.integer("group", 1)
    fits = kernel.ndim == len(flow.shape) + 1 and 0 not in kernel.shape and groups >= 1
    if not fits or kernel.shape[0] % groups or kernel.shape[1] * groups != flow.shape[0]:
        raise call.refuse("LIP013", f"kernel {list(kernel.shape)} in {groups} groups meets {list(stated(flow.shape))}")
    if call.integers("kernel_shape", kernel.shape[2:]) != kernel.shape[2:]:
        raise call.refuse("LIP013", "kernel_shape is not the kernel's")
    bias = call.constant(2)
    if bias is not None and bias.array.shape != kernel.shape[:1]:
        raise call.refuse("LIP013", f"the bias has shape {list(bias.array.shape)}, not [{kernel.shape[0]}]")
    window = _window(call, flow.shape[1:], kernel.shape[2:])
    check_convolution(call, kernel.shape, groups, (1,) * len(window.kernel), window.strides, window.dilations)
    # Without a stride, dilation only repeats the symbol, which a supremum over all frequencies does not notice.
    dilations = tuple(1 if s == 1 else d for s, d in zip(window.strides, window.dilations, strict=True))
    nothing = (0,) * len(dilations)
    operator = Convolution(kernel, nothing, ((0, 0),) * len(dilations), window.strides, dilations, groups, nothing)
    try:
        gains = dict(operator.gains(tuple(norm for norm in call.norms if norm is not Norm.L2)))
        if Norm.L2 in call.norms:
            gains[Norm.L2, Norm.L2] = every_frequency_up(Symbol(np.stack(operator.blocks)), call.guide)
    except ProofFailed as error:
        raise call.refuse("LIP014", str(error)) from error
    return [Step((kernel.shape[0], *window.shape), (gains,), "convolution, any size")]


def _pool(call: Call) -> _Window:
    window = _window(call, call.flow().shape[1:], call.integers("kernel_shape"))
    if call.integer("ceil_mode", 0):
        raise call.refuse("LIP006", "ceil_mode depends on the image's size, which is open")
    if window.padded and any(
        2 * pad > k for pad, k in zip(call.integers("pads"), (*window.kernel, *window.kernel), strict=True)
    ):
        raise call.refuse("LIP002", "a window may lie wholly in the padding")
    if window.padded and max(window.dilations) > 1:
        raise call.refuse("LIP006", "padding with dilation: a window of a small image may see only padding")
    return window


def _copies(window: _Window) -> list[int]:
    """In how many windows an entry can lie, per axis."""
    axes = zip(window.kernel, window.strides, window.dilations, strict=True)
    return [-(-k // (s // math.gcd(s, d))) for k, s, d in axes]


def _max_pool(call: Call) -> list[Step]:
    """An entry lies in at most Π⌈k / (s / gcd(s, d))⌉ windows, whatever the size: √Πc, 1, Πc."""
    window = _pool(call)
    copies = float(math.prod(_copies(window)))
    gains = per_norm(Bound(copies), Bound(sqrt_up(copies)), ONE)
    return [Step((call.flow().shape[0], *window.shape), (gains,), "window coverage")]


def _average_pool(call: Call) -> list[Step]:
    """Weights 1/k: row sums ≤ 1, column sums ≤ Πc/Πk, and ‖A‖₂ ≤ √(‖A‖₁‖A‖∞) (Schur's test).

    Of an image that is smaller than the window a runtime whose division rounds towards zero still makes one mean, of
    what is there: on such an axis an entry may count 1.
    """
    window = _pool(call)
    if window.padded and not call.integer("count_include_pad", 0):
        raise call.refuse(
            "LIP006", "the weights at the border depend on the image's size; count_include_pad=1 does not"
        )
    counted = [
        (c, k) for c, k, small in zip(_copies(window), window.kernel, window.overhangs, strict=True) if not small
    ]
    column = Bound(div_up(float(math.prod(c for c, _ in counted)), float(math.prod(k for _, k in counted))))
    gains = per_norm(column, Bound(sqrt_up(column.value)), ONE)
    return [Step((call.flow().shape[0], *window.shape), (gains,), "averaging, any size")]


def _global_average(call: Call) -> list[Step]:
    """The mean of n ≥ 1 entries: 1/√n ≤ 1, 1, 1/n ≤ 1."""
    shape = call.flow().shape
    return [Step((shape[0], *(1 for _ in shape[1:])), (diagonal(ONE),), "mean, any size")]


def _reduction(call: Call) -> list[Step]:
    """Mean, maximum, minimum over any number of entries: at most 1 in every norm."""
    shape = call.flow().shape
    constant = call.constant(1)
    given = call.integers("axes", ()) if constant is None else [int(n) for n in constant.array.reshape(-1)]
    axes = {call.resolve_axis(axis, len(shape) + 1) for axis in given}
    if not axes or 0 in axes:
        raise call.refuse("LIP005", "reduces the batch axis")
    keep = call.integer("keepdims", 1)
    kept = tuple(1 if i + 1 in axes else n for i, n in enumerate(shape) if keep or i + 1 not in axes)
    return [Step(kept, (_at_most_one(),), "mean or extremum, any size")]


def _at_most_one() -> Gains:
    return diagonal(ONE)


OPEN_RULES: dict[tuple[str, str], Callable[[Call], list[Step]]] = {
    ("", "Conv"): _convolution,
    ("", "MaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "GlobalAveragePool"): _global_average,
    ("", "ReduceMean"): _reduction,
    ("", "ReduceMax"): _reduction,
    ("", "ReduceMin"): _reduction,
}
