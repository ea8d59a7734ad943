"""Operators that act on each entry by itself: the gain is the largest slope, in every norm."""

from __future__ import annotations

from lipdeploy.verify.bound import ONE, ZERO, Bound
from lipdeploy.verify.graph import Call
from lipdeploy.verify.norms import Norm, PerNorm, constant_norm, diagonal
from lipdeploy.verify.operator_norm.sums import largest
from lipdeploy.verify.rounding import div_up
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
    return one_lipschitz(call.flow().shape, "slope ≤ 1", EXACT)


@rule("Clip", inputs=3)
def clip(call: Call) -> Step:
    """Clamping to an interval is the projection onto it: 1-Lipschitz. min and max must be constant scalars."""
    ends = [end for end in (call.constant(1), call.constant(2)) if end is not None]
    for end in ends:
        if end.array.size != 1:
            raise call.refuse("LIP002", "min and max must be scalars")
    at_zero = everywhere(call, Bound(max((largest(end.float64()) for end in ends), default=0.0)))
    return Step(call.flow().shape, (diagonal(ONE),), "projection", at_zero=at_zero, rounding=EXACT)


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


EXPONENTIAL = 8900  # roundings that e⁻ᵗ and a few operations after it are worth
FEW = Bound(div_up(16.0, float(EXPONENTIAL)))  # 16 roundings of |x|, where the exponential's error fades with it
#: What the float64 program's own form of an activation errs by: γ_terms·(slope·|x| + offset), entry by entry (F5, F6).
WRITTEN_OUT: dict[str, tuple[int, Bound, Bound]] = {
    "Tanh": (4500, ZERO, ONE),
    "Sigmoid": (4500, ZERO, ONE),
    "Erf": (8, ZERO, ONE),
    "Softplus": (EXPONENTIAL, FEW, ONE),
    "Mish": (EXPONENTIAL, FEW, ONE),
    "Softsign": (3, ONE, ZERO),
}


@rule(*WRITTEN_OUT)
def smooth(call: Call) -> Step:
    """The largest slope of the activation. The float64 program writes it out in sums, products and quotients (F5, F6);
    how runtimes round it otherwise is not specified."""
    (gain, at_zero), (terms, slope, offset) = SMOOTH[call.op], WRITTEN_OUT[call.op]
    rounding = written_out(terms, slope, everywhere(call, offset))
    shape = call.flow().shape
    return Step(shape, (diagonal(gain),), "largest slope", at_zero=everywhere(call, at_zero), rounding=rounding)


@rule(*sorted(SMOOTH.keys() - WRITTEN_OUT.keys()))
def unspecified(call: Call) -> Step:
    """The largest slope of the function. How runtimes round it is not specified."""
    gain, at_zero = SMOOTH[call.op]
    shape = call.flow().shape
    return Step(shape, (diagonal(gain),), "largest slope", at_zero=everywhere(call, at_zero), rounding=None)


GATED = 13500  # x·tanh(softplus(x)) of the forms above


def written_out(terms: int, slope: Bound, offset: PerNorm, growth: Bound = ONE, highest: Bound = ONE) -> Rounding:
    """γ_terms·(slope·|x| + offset) in the float64 program; no other program's rounding is known.

    No intermediate result exceeds 2·``growth``·|x| + 64·``highest``.
    """
    peak = (Bound(2.0) * growth, Bound(64.0) * highest)
    return Rounding(
        terms=terms, gains=(diagonal(slope),), offset=offset, underflow=float(terms), peak=peak, only=("f64",)
    )


@rule("Gelu", attributes=("approximate",))
def gelu(call: Call) -> Step:
    """1.128905 (exact form), 1.128994 (tanh approximation)."""
    form = call.string("approximate", "none")
    if form not in GELU:
        raise call.refuse("LIP002", f"approximate='{form}'")
    rounding = written_out(4600 if form == "tanh" else 32, ONE, {})
    return Step(call.flow().shape, (diagonal(GELU[form]),), "largest slope", rounding=rounding)


@rule("Elu", attributes=("alpha",))
def elu(call: Call) -> Step:
    """x for x ≥ 0, α(eˣ − 1) below: max(1, |α|)."""
    alpha = Bound(abs(call.real("alpha", 1.0)))
    rounding = written_out(EXPONENTIAL, ZERO, everywhere(call, alpha), highest=max(ONE, alpha))
    return Step(call.flow().shape, (diagonal(max(ONE, alpha)),), "max(1, |alpha|)", rounding=rounding)


@rule("Selu", attributes=("alpha", "gamma"))
def selu(call: Call) -> Step:
    """γx for x > 0, γα(eˣ − 1) below: |γ|·max(1, |α|)."""
    alpha, gamma = abs(call.real("alpha", 1.6732631921768188)), abs(call.real("gamma", 1.0507010221481323))
    gain, highest = Bound(gamma) * Bound(max(1.0, alpha)), Bound(gamma) * Bound(alpha)
    growth, offset = max(ONE, Bound(gamma)), everywhere(call, highest)
    rounding = written_out(EXPONENTIAL, FEW * Bound(gamma), offset, growth, max(ONE, highest))
    return Step(call.flow().shape, (diagonal(gain),), "|gamma|·max(1, |alpha|)", rounding=rounding)


@rule("HardSwish")
def hard_swish(call: Call) -> Step:
    """x·min(max(x/6 + 1/2, 0), 1): slopes in [−1/2, 3/2]."""
    return Step(call.flow().shape, (diagonal(Bound(1.5)),), "largest slope", rounding=written_out(16, ONE, {}))


@rule("Celu", attributes=("alpha",))
def celu(call: Call) -> Step:
    """max(0, x) + min(0, α(e^{x/α} − 1)) with α > 0: 1-Lipschitz."""
    alpha = call.real("alpha", 1.0)
    if not alpha > 0.0:
        raise call.refuse("LIP002", "alpha must be positive")
    growth, highest = max(ONE, Bound(div_up(1.0, alpha))), max(ONE, Bound(alpha))
    rounding = written_out(EXPONENTIAL, ZERO, everywhere(call, Bound(alpha)), growth, highest)
    return one_lipschitz(call.flow().shape, "slope ≤ 1", rounding=rounding)


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
    count = flow.shape[call.axis("axis", -1, len(flow.shape) + 1) - 1]
    rounding = written_out(17700 + 3 * count, ZERO, everywhere(call, ONE), highest=Bound(float(count)))
    return Step(flow.shape, (diagonal(Bound(0.5)),), "softmax", at_zero=everywhere(call, ONE), rounding=rounding)


@rule("Dropout", attributes=("seed",), inputs=3, outputs=1)
def dropout(call: Call) -> Step:
    """The identity outside training."""
    ratio = call.constant(1)  # plays no part outside training, but kernels look at it
    if ratio is not None and not 0.0 <= ratio.array.reshape(-1)[0] < 1.0:
        raise call.refuse("LIP013", "the ratio is not from 0 to below 1")
    training = call.constant(2)
    if training is not None and bool(training.array.any()):
        raise call.refuse("LIP009", "training_mode is true")
    return one_lipschitz(call.flow().shape, "identity", EXACT)


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
    return one_lipschitz(call.flow().shape, "slope ≤ 1", EXACT)
