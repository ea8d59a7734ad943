"""Multiplier certificates against the product of norms, on one thread: ``python tools/bench/multipliers.py [SECONDS]``.

Product: the verifier's own proven norms, with the largest slope of each activation (for graphs: the whole verifier
without multipliers). Certificate: what the verifier proves from the multipliers that the search found within SECONDS
(20), for graphs in all parts together. Times are CPU seconds; for graphs, "find" reads and proves the model, too.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import platform
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import onnx
from onnx import numpy_helper

from lipdeploy.ops import attach_functions
from lipdeploy.prove.multipliers import find, find_multipliers
from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting
from lipdeploy.verify.check import walked
from lipdeploy.verify.lmi import certify
from lipdeploy.verify.operator_norm import spectral_norm_up
from lipdeploy.verify.rounding import formatted_up
from lipdeploy.verify.tighten import RULE, tightened

Matrix = np.ndarray
Kind = Callable[[int], Activation]


def relu(size: int) -> Slopes:
    return Slopes(np.zeros(size), np.ones(size))


def absolute(size: int) -> Slopes:
    return Slopes(-np.ones(size), np.ones(size))


def splines(size: int) -> Slopes:
    """A learned 1-Lipschitz spline per neuron: slope intervals of random length inside [−1, 1]."""
    ends = np.sort(np.random.default_rng(1).uniform(-1, 1, (2, size)), axis=0)
    return Slopes(ends[0], np.where(np.arange(size) % 4 == 0, 1.0, ends[1]))


def sorting(group: int) -> Kind:
    return lambda size: Sorting(np.arange(size).reshape(-1, group))


KINDS: dict[str, Kind] = {
    "ReLU": relu,
    "GroupSort-2": sorting(2),
    "GroupSort-4": sorting(4),
    "FullSort": lambda size: Sorting(np.arange(size).reshape(1, -1)),
    "[−1, 1] slopes": absolute,
    "splines, own slopes": splines,
}


def gaussian(sizes: tuple[int, ...]) -> list[Matrix]:
    """Each layer divided by its spectral norm, rounded to float32."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
    return [(w / np.linalg.norm(w, 2)).astype(np.float32) for w in weights]


def orthogonal(sizes: tuple[int, ...]) -> list[Matrix]:
    rng = np.random.default_rng(0)
    factors = [np.linalg.qr(rng.standard_normal((max(a, b), min(a, b))))[0] for a, b in pairwise(sizes)]
    return [
        (q if q.shape == (b, a) else q.T).astype(np.float32) for q, (a, b) in zip(factors, pairwise(sizes), strict=True)
    ]


def trained() -> list[Matrix]:
    """scikit-learn's MLPClassifier on its digits, 64-128-128-10, ReLU."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    data, labels = load_digits(return_X_y=True)
    net = MLPClassifier((128, 128), max_iter=60, random_state=0, tol=0.0, n_iter_no_change=100).fit(data / 16, labels)
    return [w.T.astype(np.float32) for w in net.coefs_]


def cases() -> Iterator[tuple[str, list[Matrix], str]]:
    wide = (784, 256, 256, 10)
    for kind in KINDS:
        yield "Gaussian 784-256-256-10", gaussian(wide), kind
    for kind in ("ReLU", "GroupSort-2"):
        yield "orthogonal 784-256-256-10", orthogonal(wide), kind
    for kind in ("ReLU", "GroupSort-2"):
        yield "Gaussian 784-512-512-512-10", gaussian((784, 512, 512, 512, 10)), kind
    yield "Gaussian 64, 8 × 64, 10", gaussian((64, *(64,) * 8, 10)), "GroupSort-2"
    yield "trained digits 64-128-128-10", trained(), "ReLU"


def graphs() -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """Networks that are no plain chain of matrices: residuals, reflections, sorting in standard operators, a front."""
    wide = dict(zip("ABC", gaussian((784, 256, 256, 10)), strict=True))
    rng = np.random.default_rng(1)
    angles = rng.uniform(0, 2 * np.pi, (2, 128))
    turns = {f"{n}{k}": f(angles[k] / 2).astype(np.float32) for n, f in (("s", np.sin), ("c", np.cos)) for k in (0, 1)}
    fold = "{h} = lipdeploy.Householder({v}, s{k}, c{k})"
    yield "Gaussian 784-256-256-10", "Householder", graph(784, dense(fold), {**wide, **turns})
    pairs = (
        "p{k} = Reshape({v}, two) l{k} = ReduceMin<keepdims = 1>(p{k}, last) "
        "u{k} = ReduceMax<keepdims = 1>(p{k}, last) "
        "j{k} = Concat<axis = 2>(l{k}, u{k}) {h} = Reshape(j{k}, flat)"
    )
    shapes = {"two": np.array([0, 128, 2]), "last": np.array([2]), "flat": np.array([0, 256])}
    yield "Gaussian 784-256-256-10", "GroupSort-2 in five nodes", graph(784, dense(pairs), {**wide, **shapes})
    for kind in ("Relu", "lipdeploy.GroupSort"):
        body, name, weights = "", "x", {}
        for k in range(4):
            weights[f"F{k}"], outer = gaussian((128, 256, 128))
            weights[f"G{k}"] = (outer / 2).astype(np.float32)
            body += f"v{k} = Gemm<transB = 1>({name}, F{k}) h{k} = {kind}(v{k}) r{k} = Gemm<transB = 1>(h{k}, G{k}) "
            body += f"z{k} = Add({name}, r{k}) "
            name = f"z{k}"
        weights["H"] = gaussian((128, 10))[0]
        label = f"4 blocks x + W₂σ(W₁x), 128-256-128, and 10, {kind.split('.')[-1]}"
        yield label, "residual", graph(128, f"{body} y = Gemm<transB = 1>({name}, H)", weights)
    kernels = {"K0": (8, 1, 3, 3), "K1": (16, 8, 3, 3)}
    conv = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in kernels.items()}
    conv.update(zip(("U", "H"), gaussian((256, 64, 10)), strict=True))
    conv["flat"] = np.array([0, 256])
    step = "Conv<strides = [2, 2], pads = [1, 1, 1, 1]>"
    body = f"a = {step}(x, K0) b = Relu(a) c = {step}(b, K1) d = Relu(c) "
    tail = "e = Reshape(d, flat) f = Gemm<transB = 1>(e, U) h = Relu(f) y = Gemm<transB = 1>(h, H)"
    yield "2 strided convolutions on 16 × 16, 64, 10", "ReLU, written out", graph("1, 16, 16", body + tail, conv)
    clipped, conv["zero"] = body.replace("Relu(c)", "Clip(c, zero)"), np.array(0.0, np.float32)
    yield "the same, Clip for the second ReLU", "ReLU", graph("1, 16, 16", clipped + tail, conv)
    several = {n: w for n, w in zip("ABCDE", gaussian((128, 256, 1024, 8, 64, 10)), strict=True) if n in "ABDE"}
    several["K"] = conv["K0"] / np.float32(3)
    several.update(image=np.array([0, 1, 32, 32]), flat=np.array([0, 8]))
    parts = (
        "a = Gemm<transB = 1>(x, A) b = Relu(a) c = Gemm<transB = 1>(b, B) i = Reshape(c, image) "
        "k = Conv<pads = [1, 1, 1, 1]>(i, K) m = GlobalMaxPool(k) f = Reshape(m, flat) "
        "g = Gemm<transB = 1>(f, D) h = Relu(g) y = Gemm<transB = 1>(h, E)"
    )
    yield "128-256-1024, a large convolution, 8-64-10", "ReLU", graph(128, parts, several)


def dense(activation: str) -> str:
    """784-256-256-10 with an activation written for value {v}, result {h} and number {k}."""
    layers = (activation.format(v=f"v{k}", h=f"h{k}", k=k) for k in (0, 1))
    one, two = layers
    return f"v0 = Gemm<transB = 1>(x, A) {one} v1 = Gemm<transB = 1>(h0, B) {two} y = Gemm<transB = 1>(h1, C)"


def graph(shape: int | str, body: str, stored: dict[str, np.ndarray]) -> onnx.ModelProto:
    custom = "lipdeploy." in body
    imports = '"": 20, "lipdeploy": 1' if custom else '"": 20'
    text = f"<ir_version: 10, opset_import: [{imports}]> g (float[N, {shape}] x) => (float[N, 10] y) {{ {body} }}"
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    if custom:
        attach_functions(model, {onnx.TensorProto.FLOAT})
    return model


def plain(weights: list[Matrix], kind: str) -> tuple[Chain, float]:
    """(chain, product of norms) of a network of matrices."""
    exact = tuple(np.ascontiguousarray(w, dtype=np.float64) for w in weights)
    activations = tuple(KINDS[kind](len(w)) for w in exact[:-1])
    product = float(np.prod([spectral_norm_up(w).value for w in exact]))
    for activation in activations:
        if isinstance(activation, Slopes):
            product *= float(np.maximum(np.abs(activation.low), np.abs(activation.high)).max())
    return Chain(exact, activations), product


def row(name: str, kind: str, chain: Chain, product: float, seconds: float) -> str:
    start = time.process_time()
    found = find_multipliers(chain, seconds)
    searched = time.process_time() - start
    start = time.process_time()
    certified = certify(chain, found.multipliers)
    checked = time.process_time() - start
    if certified is None:
        raise SystemExit(f"{name}, {kind}: the multipliers found prove nothing")
    bound = certified.bound.value
    slack = bound / (found.rho**0.5 * chain.front.value) - 1
    bounds = f"{formatted_up(product, '.4f')} | {formatted_up(bound, '.4f')} | {product / bound:.2f}×"
    return f"| {name} | {kind} | {bounds} | {searched:.1f} | {checked:.3f} | {slack:.0e} |"


def graph_row(name: str, kind: str, model: onnx.ModelProto, seconds: float) -> str:
    start = time.process_time()
    hints = find(model.SerializeToString(), seconds=seconds)
    searched = time.process_time() - start
    walk = walked(model, "l2")
    product = walk.proof().bound.value
    start = time.process_time()
    proof = tightened(walk, "best", hints or {})
    checked = time.process_time() - start
    parts = sum(node.rule == RULE for node in proof.nodes)
    label = kind if parts == 1 else f"{kind}, {parts} parts"
    bound = proof.bound.value
    bounds = f"{formatted_up(product, '.4f')} | {formatted_up(bound, '.4f')} | {product / bound:.2f}×"
    return f"| {name} | {label} | {bounds} | {searched:.1f} | {checked:.3f} | |"


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}, one thread, budget {seconds:g} s\n")
    print("| net | activation | product | certificate | gain | find, s | check, s | slack of the check |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, weights, kind in cases():
        print(row(name, kind, *plain(weights, kind), seconds), flush=True)
    for name, kind, model in graphs():
        print(graph_row(name, kind, model, seconds), flush=True)


if __name__ == "__main__":
    main()
