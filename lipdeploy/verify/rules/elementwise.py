"""Operators that act on each entry by itself: the gain is the largest slope, in every norm."""

from __future__ import annotations

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call
from lipdeploy.verify.norms import Norm, PerNorm, constant_norm, diagonal
from lipdeploy.verify.operator_norm.sums import largest
from lipdeploy.verify.rules.broadcast import partner
from lipdeploy.verify.rules.registry import rule
from lipdeploy.verify.step import EXACT, Rounding, Step, one_lipschitz

#: Largest |slope| of smooth activations, rounded up from 50-digit values (tests/verify recomputes them), and |φ(0)|.
SMOOTH: dict[str, tuple[Bound, Bound]] = {
    "Tanh": (ONE, ZERO),
    "Sigmoid": (Bound(0.25), Bound(0.5)),
    "Softplus": (ONE, Bound(0.6931471805599455)),
    "Softsign": (ONE, ZERO),
    "Erf": (Bound(1.1283791670955128), ZERO),
    "Sin": (ONE, ZERO),
    "Cos": (ONE, ONE),
    "Atan": (ONE, ZERO),
    "Asinh": (ONE, ZERO),
    "Mish": (Bound(1.0884990), ZERO),
}
GELU = {"none": Bound(1.1289050), "tanh": Bound(1.1289940)}


def everywhere(call: Call, value: Bound) -> PerNorm:
    """Norms of a tensor shaped like the input whose entries are at most ``value``."""
    size = call.flow().size
    return {norm: constant_norm(norm, value, size) for norm in Norm}


@rule("Relu", "Abs", "Neg")
def unit_slope(call: Call) -> Step:
    """|φ(x) − φ(y)| ≤ |x − y|: slopes in [−1, 1]. Computed without rounding."""
    return one_lipschitz(call.flow().shape, "slope ≤ 1")


@rule("Clip", inputs=3)
def clip(call: Call) -> Step:
    """Clamping to an interval is the projection onto it: 1-Lipschitz. min and max must be constant scalars."""
    ends = [end for end in (call.constant(1), call.constant(2)) if end is not None]
    for end in ends:
        if end.array.size != 1:
            raise call.refuse("LIP002", "min and max must be scalars")
    at_zero = everywhere(call, Bound(max((largest(end.float64()) for end in ends), default=0.0)))
    return Step(call.flow().shape, (diagonal(ONE),), "projection", at_zero=at_zero)


@rule("LeakyRelu", attributes=("alpha",))
def leaky_relu(call: Call) -> Step:
    """max(1, |α|); one rounded product."""
    return _two_slopes(call, abs(call.real("alpha", 0.009999999776482582)))


@rule("PRelu", inputs=2)
def prelu(call: Call) -> Step:
    """max(1, |a|) over the stored slopes; one rounded product. The slopes may not replicate the data."""
    slope = call.required_constant(1)
    side = partner(call, call.flow(), slope)
    if side.copies != 1:
        raise call.refuse("LIP002", "the slope tensor is larger than the data")
    return _two_slopes(call, largest(slope.float64()))


def _two_slopes(call: Call, negative: float) -> Step:
    gain = Bound(max(1.0, negative))
    rounding = Rounding(terms=1, underflow=1.0, peak=(gain, ZERO))
    return Step(call.flow().shape, (diagonal(gain),), "max(1, |slope|)", rounding=rounding)


@rule(*SMOOTH)
def smooth(call: Call) -> Step:
    """The largest slope of the activation. How runtimes round it is not specified; Tanh and Sigmoid of the float64
    program are written out in sums, products and quotients, and err by at most 4500·2⁻⁵³ (F5)."""
    gain, at_zero = SMOOTH[call.op]
    shape, rounding = call.flow().shape, _written_out(call) if call.op in ("Tanh", "Sigmoid") else None
    return Step(shape, (diagonal(gain),), "largest slope", at_zero=everywhere(call, at_zero), rounding=rounding)


def _written_out(call: Call) -> Rounding:
    nothing, peak = (diagonal(ZERO),), (Bound(2.0), Bound(64.0))
    return Rounding(terms=4500, gains=nothing, offset=everywhere(call, ONE), peak=peak, only=("f64",))


@rule("Gelu", attributes=("approximate",))
def gelu(call: Call) -> Step:
    """1.128905 (exact form), 1.128994 (tanh approximation)."""
    form = call.string("approximate", "none")
    if form not in GELU:
        raise call.refuse("LIP002", f"approximate='{form}'")
    return Step(call.flow().shape, (diagonal(GELU[form]),), "largest slope", rounding=None)


@rule("Elu", attributes=("alpha",))
def elu(call: Call) -> Step:
    """x for x ≥ 0, α(eˣ − 1) below: max(1, |α|)."""
    gain = Bound(max(1.0, abs(call.real("alpha", 1.0))))
    return Step(call.flow().shape, (diagonal(gain),), "max(1, |alpha|)", rounding=None)


@rule("Selu", attributes=("alpha", "gamma"))
def selu(call: Call) -> Step:
    """γx for x > 0, γα(eˣ − 1) below: |γ|·max(1, |α|)."""
    alpha, gamma = abs(call.real("alpha", 1.6732631921768188)), abs(call.real("gamma", 1.0507010221481323))
    gain = Bound(gamma) * Bound(max(1.0, alpha))
    return Step(call.flow().shape, (diagonal(gain),), "|gamma|·max(1, |alpha|)", rounding=None)


@rule("HardSwish")
def hard_swish(call: Call) -> Step:
    """x·min(max(x/6 + 1/2, 0), 1): slopes in [−1/2, 3/2]."""
    return Step(call.flow().shape, (diagonal(Bound(1.5)),), "largest slope", rounding=None)


@rule("Celu", attributes=("alpha",))
def celu(call: Call) -> Step:
    """max(0, x) + min(0, α(e^{x/α} − 1)) with α > 0: 1-Lipschitz."""
    if not call.real("alpha", 1.0) > 0.0:
        raise call.refuse("LIP002", "alpha must be positive")
    return one_lipschitz(call.flow().shape, "slope ≤ 1", rounding=None)


@rule("HardSigmoid", attributes=("alpha", "beta"))
def hard_sigmoid(call: Call) -> Step:
    """max(0, min(1, αx + β)): |α|. Two roundings."""
    gain = Bound(abs(call.real("alpha", 0.20000000298023224)))
    beta = Bound(abs(call.real("beta", 0.5)))
    offset = everywhere(call, beta)
    rounding = Rounding(terms=2, offset=offset, underflow=2.0, peak=(gain, beta), stored=2)
    at_zero = everywhere(call, Bound(min(1.0, beta.value)))
    return Step(call.flow().shape, (diagonal(gain),), "|alpha|", at_zero=at_zero, rounding=rounding)


@rule("Softmax", attributes=("axis",))
def softmax(call: Call) -> Step:
    """J = diag(p) − ppᵀ is symmetric with row sums 2pᵢ(1 − pᵢ) ≤ 1/2, so ½ in every norm."""
    flow = call.flow()
    if call.axis("axis", -1, len(flow.shape) + 1) == 0:
        raise call.refuse("LIP005", "softmax over the batch axis")
    return Step(flow.shape, (diagonal(Bound(0.5)),), "softmax", at_zero=everywhere(call, ONE), rounding=None)


@rule("Dropout", attributes=("seed",), inputs=3, outputs=1)
def dropout(call: Call) -> Step:
    """The identity outside training."""
    call.constant(1)  # the ratio plays no part outside training
    training = call.constant(2)
    if training is not None and bool(training.array.any()):
        raise call.refuse("LIP009", "training_mode is true")
    return one_lipschitz(call.flow().shape, "identity")


@rule("Identity")
def identity(call: Call) -> Step:
    """1 in every norm."""
    return one_lipschitz(call.flow().shape, "identity", EXACT)


@rule("Shrink", attributes=("bias", "lambd"))
def shrink(call: Call) -> Step:
    """x ∓ λ outside [−λ, λ], 0 inside: 1-Lipschitz where bias = λ ≥ 0; it jumps otherwise."""
    bias, threshold = call.real("bias", 0.0), call.real("lambd", 0.5)
    if bias != threshold or threshold < 0.0:
        raise call.refuse("LIP010", f"bias {bias} is not lambd {threshold}: the function jumps")
    limit = Bound(threshold)
    rounding = Rounding(terms=1, offset=everywhere(call, limit), underflow=1.0, peak=(ONE, limit))
    return Step(call.flow().shape, (diagonal(ONE),), "soft threshold", rounding=rounding)


@rule("ThresholdedRelu", attributes=("alpha",))
def thresholded_relu(call: Call) -> Step:
    """x above α, 0 below: the rectifier for α = 0; it jumps otherwise."""
    alpha = call.real("alpha", 1.0)
    if alpha != 0.0:
        raise call.refuse("LIP010", f"alpha is {alpha}: the function jumps")
    return one_lipschitz(call.flow().shape, "slope ≤ 1")
