"""Sandwich layers between images: the pair of convolutions is 1-Lipschitz, its two norms are far from 1."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest

from lipdeploy.verify import verify
from lipdeploy.verify.verdict import Verdict
from tests.verify.models import best_ratio, double_runner
from tests.verify.test_layer_motifs import built

SIZE, INPUTS, HIDDEN, OUTPUTS = 6, 2, 6, 6
RULE = "convolutional sandwich"


def cayley(rng: np.random.Generator, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Aᵀ (outputs × hidden) and B (hidden × inputs) with AAᵀ + BBᵀ = I, complex."""
    shape = (HIDDEN, HIDDEN), (inputs, HIDDEN)
    upper, lower = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in shape)
    skew = upper - upper.conj().T + lower.conj().T @ lower
    inverse = np.linalg.inv(np.eye(HIDDEN) + skew)
    a, b = (inverse @ (np.eye(HIDDEN) - skew)).conj().T, (-2 * lower @ inverse).conj().T
    assert np.allclose(a @ a.conj().T + b @ b.conj().T, np.eye(HIDDEN))
    return a.conj().T, b


def kernels(seed: int = 0, inputs: int = INPUTS) -> dict[str, np.ndarray]:
    """Wang and Manchester's layer in space: a Cayley transform at every frequency of the image, transformed back."""
    rng = np.random.default_rng(seed)
    psi = np.exp(0.4 * rng.standard_normal(HIDDEN))
    spectra = {
        name: np.zeros((SIZE, SIZE, *s), complex) for name, s in (("A", (OUTPUTS, HIDDEN)), ("B", (HIDDEN, inputs)))
    }
    for u, v in product(range(SIZE), repeat=2):
        mirror = (-u % SIZE, -v % SIZE)
        if mirror < (u, v):  # a real kernel's spectrum is conjugate at the mirrored frequency
            spectra["A"][u, v], spectra["B"][u, v] = spectra["A"][mirror].conj(), spectra["B"][mirror].conj()
            continue
        a, b = cayley(rng, inputs)
        if mirror == (u, v):
            a, b = real_cayley(rng, inputs)
        spectra["A"][u, v], spectra["B"][u, v] = a, b
    space = {name: np.fft.ifft2(s, axes=(0, 1)).real.transpose(2, 3, 0, 1) for name, s in spectra.items()}
    outer, inner = np.sqrt(2) * space["A"] * psi[:, None, None], np.sqrt(2) * space["B"] / psi[:, None, None, None]
    # A window that starts at its own pixel and wraps: tap t reads pixel o + t, so the taps are those of −t.
    turned = {"G": outer, "F": inner}
    flip = [-t % SIZE for t in range(SIZE)]
    return {name: np.ascontiguousarray(k[:, :, flip][:, :, :, flip]) for name, k in turned.items()}


def real_cayley(rng: np.random.Generator, inputs: int = INPUTS) -> tuple[np.ndarray, np.ndarray]:
    class Real:
        def standard_normal(self, shape: tuple[int, int]) -> np.ndarray:
            self.flag = not getattr(self, "flag", False)
            return rng.standard_normal(shape) if self.flag else np.zeros(shape)

    return cayley(Real(), inputs)  # type: ignore[arg-type]


CIRCULAR = f"""g (float[N,{INPUTS},{SIZE},{SIZE}] x) => (float y)
    <int64[8] pads = {{0, 0, 0, 0, 0, 0, {SIZE - 1}, {SIZE - 1}}}> {{
    p = Pad<mode = "wrap">(x, pads) h = Conv(p, F, c) s = Relu(h)
    q = Pad<mode = "wrap">(s, pads) y = Conv(q, G) }}"""


def judged(proto: onnx.ModelProto) -> Verdict:
    verdict = verify(proto.SerializeToString())
    assert verdict.status == "verified" and verdict.lipschitz_bound is not None, verdict.refusals
    return verdict


def stored(seed: int = 0) -> dict[str, np.ndarray]:
    return {**kernels(seed), "c": np.random.default_rng(9).standard_normal(HIDDEN)}


@pytest.mark.parametrize("seed", range(3))
def test_a_circular_sandwich_is_one_lipschitz_up_to_rounding(seed: int) -> None:
    proto = built(CIRCULAR, stored(seed))
    verdict = judged(proto)
    assert verdict.lipschitz_bound is not None and verdict.nodes[-1].rule == RULE
    assert 1.0 - 1e-5 <= verdict.lipschitz_bound.value <= 1.0 + 1e-5
    seen = best_ratio(double_runner(proto), (INPUTS, SIZE, SIZE), samples=32, rounds=4)
    assert 0.5 <= seen <= verdict.lipschitz_bound.value


def test_factors_and_shifts_in_nodes_of_their_own() -> None:
    """As the layer is written: ψ and √2 beside the convolutions, the constant 3 behind them."""
    weights = stored()
    text = CIRCULAR.replace("h = Conv(p, F, c)", "f = Conv(p, F) g = Mul(f, half) h = Add(g, shift)").replace(
        "y = Conv(q, G)", "o = Conv(q, G) t = Mul(o, two) y = Mul(t, three)"
    )
    weights["half"], weights["two"], weights["three"] = np.array(0.5), np.full((OUTPUTS, 1, 1), 2.0), np.array(3.0)
    weights["shift"] = weights.pop("c").reshape(-1, 1, 1)
    verdict = judged(built(text, weights))
    assert verdict.lipschitz_bound is not None
    assert any(node.rule == RULE for node in verdict.nodes)
    assert verdict.lipschitz_bound.value == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("q = Pad<", "z = Neg(s) q = Pad<"),
        ("<int64[8] pads", "<int64[8] front = {0, 0, 5, 5, 0, 0, 0, 0}, int64[8] pads"),
    ],
    ids=["its negative", "shifted, because wrapped at the other end"],
)
def test_what_only_turns_or_shifts_is_still_one_lipschitz(old: str, new: str) -> None:
    text = CIRCULAR.replace(old, new)
    text = text.replace("(s, pads)", "(z, pads)" if "Neg" in new else "(s, front)")
    verdict = judged(built(text, stored()))
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value == pytest.approx(1.0, rel=1e-5)


def test_two_in_a_row() -> None:
    first, second = kernels(1), kernels(2, OUTPUTS)
    weights = {"F": first["F"], "G": first["G"], "F2": second["F"], "G2": second["G"]}
    text = CIRCULAR.replace(", c)", ")").replace("y = Conv(q, G) }", "m = Conv(q, G) ")
    text += (
        'n = Pad<mode = "wrap">(m, pads) k = Conv(n, F2) l = Clip(k) r = Pad<mode = "wrap">(l, pads) y = Conv(r, G2) }'
    )
    verdict = judged(built(text, weights))
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value <= 1.0 + 2e-5
    assert [node.rule for node in verdict.nodes].count(RULE) == 2


def test_zero_padded_pairs_that_satisfy_the_inequality() -> None:
    """1 × 1 kernels: a dense sandwich at every pixel; written as Conv, and with ConvTranspose behind."""
    rng = np.random.default_rng(5)
    a, b = real_cayley(rng)
    psi = np.exp(0.4 * rng.standard_normal(HIDDEN))
    outer, inner = (np.sqrt(2) * a * psi).real[:, :, None, None], (np.sqrt(2) * b / psi[:, None]).real[:, :, None, None]
    text = f"g (float[N,{INPUTS},5,4] x) => (float y) {{ h = Conv(x, F) s = Relu(h) y = LAST }}"
    for last, kernel in (("Conv(s, G)", outer), ("ConvTranspose(s, G)", outer.swapaxes(0, 1))):
        verdict = judged(built(text.replace("LAST", last), {"F": inner, "G": kernel}))
        assert verdict.lipschitz_bound is not None and verdict.nodes[-1].rule == RULE
        assert verdict.lipschitz_bound.value == pytest.approx(1.0, rel=1e-5)


def changed(name: str) -> onnx.ModelProto:
    """The layer with one thing changed."""
    weights, text = stored(), CIRCULAR
    if name in ("F", "G"):
        weights[name] = weights[name].copy()
        weights[name][0, 0, 0, 0] += 1.0
    elif name == "one channel of psi":
        weights["G"] = weights["G"] * np.where(np.arange(HIDDEN) == 2, 2.0, 1.0)[:, None, None]
    elif name == "sign":
        weights["G"] = weights["G"] * np.where(np.arange(HIDDEN) == 2, -1.0, 1.0)[:, None, None]
    elif name == "reversed taps":
        weights["F"] = np.ascontiguousarray(weights["F"][:, :, ::-1, ::-1])
    elif name == "zero padding":
        text = text.replace('Pad<mode = "wrap">(s, pads)', "Pad(s, pads)")
    elif name == "transposed in between":
        text = text.replace("q = Pad<", "z = Transpose<perm = [0, 1, 3, 2]>(s) q = Pad<").replace(
            "(s, pads)", "(z, pads)"
        )
    elif name == "doubled":
        text = text.replace("s = Relu(h)", "i = Relu(h) s = Add(i, i)")
    else:
        text = text.replace("Relu", name)
    return built(text, weights)


CHANGES = [
    "F", "G", "one channel of psi", "sign", "reversed taps", "zero padding", "transposed in between", "doubled",
    "Abs", "Neg", "HardSwish",
]  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_nearly_a_sandwich_is_never_judged_below_the_truth(name: str) -> None:
    proto = changed(name)
    verdict = judged(proto)
    assert verdict.lipschitz_bound is not None
    seen = best_ratio(double_runner(proto), (INPUTS, SIZE, SIZE), samples=48, rounds=6)
    assert verdict.lipschitz_bound.value >= seen
    assert verdict.nodes[-1].rule != RULE or verdict.lipschitz_bound.value > 1.001


def test_the_lemma_with_any_scales() -> None:
    """E4 for dense matrices and wrong E, ℓ: what it says is never below what multipliers and slopes reach."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        f, g = rng.standard_normal((5, 3)), rng.standard_normal((4, 5))
        scale, length = np.exp(rng.standard_normal(5)), float(np.exp(rng.standard_normal()))
        joint = np.concatenate([g / scale, f.T * scale / length])
        said = np.linalg.norm(joint, 2) ** 2 / 2 * length
        slopes = [np.array(corner) for corner in product((0.0, 1.0), repeat=5)]
        assert max(np.linalg.norm((g * d) @ f, 2) for d in slopes) <= said * (1 + 1e-12)
