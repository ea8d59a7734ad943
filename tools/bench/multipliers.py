"""Multiplier certificates against the product of norms, on one thread: ``python tools/bench/multipliers.py [SECONDS]``.

Product: the verifier's own proven norms, with the largest slope of each activation. Certificate: what the verifier
proves from the multipliers that the search found within SECONDS (20). Times are CPU seconds.
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

from lipdeploy.prove.multipliers import find_multipliers
from lipdeploy.verify.chain import Activation, Chain, Slopes, Sorting
from lipdeploy.verify.lmi import certify
from lipdeploy.verify.operator_norm import spectral_norm_up

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


def row(name: str, weights: list[Matrix], kind: str, seconds: float) -> str:
    exact = tuple(np.ascontiguousarray(w, dtype=np.float64) for w in weights)
    activations = tuple(KINDS[kind](len(w)) for w in exact[:-1])
    chain = Chain(exact, activations)
    product = float(np.prod([spectral_norm_up(w).value for w in exact]))
    for activation in activations:
        if isinstance(activation, Slopes):
            product *= float(np.maximum(np.abs(activation.low), np.abs(activation.high)).max())
    start = time.process_time()
    found = find_multipliers(chain, seconds)
    searched = time.process_time() - start
    start = time.process_time()
    certified = certify(chain, found.multipliers)
    checked = time.process_time() - start
    if certified is None:
        raise SystemExit(f"{name}, {kind}: the multipliers found prove nothing")
    bound = certified.bound.value
    slack = bound / found.rho**0.5 - 1
    return (
        f"| {name} | {kind} | {product:.4f} | {bound:.4f} | {product / bound:.2f}× "
        f"| {searched:.1f} | {checked:.3f} | {slack:.0e} |"
    )


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}, one thread, budget {seconds:g} s\n")
    print("| net | activation | product | certificate | gain | find, s | check, s | slack of the check |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases():
        print(row(*case, seconds), flush=True)


if __name__ == "__main__":
    main()
