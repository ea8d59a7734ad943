"""How fast and how tight the verifier is, beside NumPy: ``python tools/bench/verify.py [dense] [conv] [file] [deep]``.

CPU seconds of this process with one BLAS thread (the machine may be shared, so not the wall's), medians; the contenders
take turns. ``deep`` (12 layers of 512 channels) and ``dense`` take minutes, hence each part can be run alone.

- dense: the proof of ‖W‖ for 4096² float32 weights beside NumPy's float64 SVD norm of the same matrix;
- conv: 3-64-128(s2)-256(s2), 3×3, at 32×32: from scratch, again with the hints of the certificate, and an FFT with
  SVDs in NumPy on the same torus, which is a number and no proof. Looseness: against ARPACK on the real operator;
- file: whole files of about 5 MB, verified after import;
- deep: 12 × (512 → 512, 3×3) at 32×32: from scratch and with hints, and the largest resident memory.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import itertools
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from scipy.sparse.linalg import LinearOperator, svds

from lipdeploy.verify import verify, version
from lipdeploy.verify.certificate import certificate_path
from lipdeploy.verify.guide import Guide
from lipdeploy.verify.operator_norm import Convolution, spectral_norm_up
from lipdeploy.verify.rounding import formatted_up

Array = np.ndarray
CONV_NET = ((3, 64, 1, 32), (64, 128, 2, 32), (128, 256, 2, 16))


def turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, tuple[float, float]]:
    """name → (median CPU seconds, last result); the contenders run one after the other, ``repeats`` rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, float] = {}
    for _ in range(repeats):
        for name, function in contenders.items():
            start = time.process_time()
            results[name] = function()
            times[name].append(time.process_time() - start)
    return {name: (statistics.median(times[name]), results[name]) for name in contenders}


def dense() -> None:
    """Gaussian and float32-rounded orthogonal matrices."""
    print("| matrix | kind | bound / truth − 1 | proof, s | with hint, s | NumPy SVD norm, s | proof / SVD |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    for size, repeats in ((512, 5), (1024, 3), (2048, 1), (4096, 1)):
        gauss = rng.standard_normal((size, size))
        kinds = {"gauss": gauss} if size > 1024 else {"gauss": gauss, "orthogonal": np.linalg.qr(gauss)[0]}
        for kind, weight in kinds.items():
            stored = weight.astype(np.float32).astype(np.float64)
            guide = Guide()
            spectral_norm_up(stored, guide)
            found = turns(
                {
                    "proof": lambda w=stored: spectral_norm_up(w).value,  # type: ignore[misc]
                    "hinted": lambda w=stored, h=dict(guide.found): spectral_norm_up(w, Guide(h)).value,  # type: ignore[misc]
                    "svd": lambda w=stored: float(np.linalg.norm(w, 2)),  # type: ignore[misc]
                },
                repeats,
            )
            (proof, bound), (hinted, _), (svd, truth) = found["proof"], found["hinted"], found["svd"]
            row = f"{bound / truth - 1:.1e} | {proof:.3g} | {hinted:.3g} | {svd:.3g} | {proof / svd:.2f} |"
            print(f"| {size}×{size} | {kind} | {row}", flush=True)


def conv() -> None:
    """The three layers, one by one and together."""
    print("| conv 3×3, pad 1 | bound | looseness | scratch, s | hints, s | FFT + SVD, s | scratch / FFT | again |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rng, sums = np.random.default_rng(0), np.zeros(3)
    for inputs, outputs, stride, size in CONV_NET:
        kernel = rng.uniform(-1, 1, (outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        kernel = kernel.astype(np.float32).astype(np.float64)

        def operator(k: Array = kernel, s: int = stride, n: int = size) -> Convolution:
            return Convolution(k, (n,) * 2, ((1, 1),) * 2, (s,) * 2, (1, 1), 1, (n // s,) * 2)

        guide = Guide()
        torus = operator().torus
        bound = operator().spectral_norm_up(guide).value
        found = turns(
            {
                "scratch": lambda make=operator: make().spectral_norm_up().value,  # type: ignore[misc]
                "hints": lambda make=operator, h=dict(guide.found): make().spectral_norm_up(Guide(h)).value,  # type: ignore[misc]
                "fft": lambda k=kernel, s=stride, t=torus: fft_norm(k, s, t),  # type: ignore[misc]
            },
            3,
        )
        seconds = np.array([found[name][0] for name in ("scratch", "hints", "fft")])
        sums += seconds
        loose = bound / largest_singular_value(kernel, size, stride) - 1
        stated = formatted_up(bound, ".6f")
        print(f"| {inputs}→{outputs} s{stride} @{size} | {stated} | {loose:.1e} | {_timing(seconds)}", flush=True)
    print(f"| together | | | {_timing(sums)}", flush=True)


def _timing(seconds: Array) -> str:
    scratch, hints, fft = seconds
    return f"{scratch:.3g} | {hints:.3g} | {fft:.3g} | {scratch / fft:.2f} | {hints / scratch:.2f} |"


def fft_norm(kernel: Array, stride: int, torus: tuple[int, ...]) -> float:
    """The largest singular value over the torus' frequencies by numpy.fft and numpy.linalg.svd; no proof."""
    phases = kernel
    if stride == 2:
        padded = np.zeros((*kernel.shape[:2], 4, 4))
        padded[:, :, :3, :3] = kernel
        phases = np.concatenate([padded[:, :, a::2, b::2] for a in range(2) for b in range(2)], axis=1)
    symbols = np.moveaxis(np.fft.fft2(phases, torus), (0, 1), (2, 3))
    return float(np.linalg.svd(symbols, compute_uv=False).max())


def largest_singular_value(kernel: Array, size: int, stride: int) -> float:
    """ARPACK on the zero-padded, strided convolution (pad 1)."""
    outputs, inputs = kernel.shape[:2]
    half = size // stride

    def forward(x: Array) -> Array:
        image = np.pad(x.reshape(inputs, size, size), ((0, 0), (1, 1), (1, 1)))
        taps = (image[:, a : a + size : stride, b : b + size : stride] for a in range(3) for b in range(3))
        stack = np.stack([tap.reshape(inputs, -1) for tap in taps], axis=1).reshape(inputs * 9, -1)
        return np.asarray(kernel.reshape(outputs, -1) @ stack).reshape(-1)

    def backward(y: Array) -> Array:
        stack = (kernel.reshape(outputs, -1).T @ y.reshape(outputs, -1)).reshape(inputs, 3, 3, half, half)
        image = np.zeros((inputs, size + 2, size + 2))
        for a in range(3):
            for b in range(3):
                image[:, a : a + size : stride, b : b + size : stride] += stack[:, a, b]
        return image[:, 1:-1, 1:-1].reshape(-1)

    shape = (outputs * half * half, inputs * size * size)
    operator = LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=np.float64)
    return float(svds(operator, k=1, return_singular_vectors=False, tol=1e-10)[0])


def network(
    convolutions: Sequence[tuple[int, int, int]], size: int, dense_sizes: Sequence[int] = ()
) -> onnx.ModelProto:
    """(in, out, stride) 3×3 convolutions with ReLU, then dense layers of the sizes given (features first)."""
    rng = np.random.default_rng(0)
    nodes, stored, name = [], [], "x"
    first = [convolutions[0][0], size, size] if convolutions else [dense_sizes[0]]
    for index, (inputs, outputs, stride) in enumerate(convolutions):
        kernel = rng.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(36 * inputs)
        stored.append(numpy_helper.from_array(kernel.astype(np.float32), f"k{index}"))
        attributes: Any = {"pads": [1] * 4, "strides": [stride] * 2, "kernel_shape": [3, 3]}
        nodes.append(helper.make_node("Conv", [name, f"k{index}"], [f"c{index}"], name=f"conv{index}", **attributes))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        name = f"r{index}"
    if convolutions and dense_sizes:
        nodes.append(helper.make_node("Flatten", [name], ["flat"], name="flat"))
        name = "flat"
    for index, (inputs, outputs) in enumerate(itertools.pairwise(dense_sizes)):
        weight = rng.standard_normal((outputs, inputs)) / np.sqrt(4 * inputs)
        stored.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{index}"], [f"g{index}"], name=f"fc{index}", transB=1))
        name = f"g{index}"
        if index + 2 < len(dense_sizes):
            nodes.append(helper.make_node("Relu", [name], [f"s{index}"], name=f"act{index}"))
            name = f"s{index}"
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", 1, ["N", *first])],
        [helper.make_tensor_value_info(name, 1, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def judged(model: onnx.ModelProto, repeats: int) -> tuple[float, float, float, float]:
    """(MB, bound, CPU seconds from scratch, CPU seconds with the hints of its own certificate)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.save(model, path)

        def bound(*, hints: bool) -> float:
            verdict = verify(path, check_certificate=hints)
            if verdict.lipschitz_bound is None or verdict.status != "verified":
                raise SystemExit(f"not verified: {verdict.refusals}")
            if not hints:
                verdict.write_certificate(certificate_path(path))
            return verdict.lipschitz_bound.value

        found = turns({"scratch": lambda: bound(hints=False), "hints": lambda: bound(hints=True)}, repeats)
        return path.stat().st_size / 1e6, found["scratch"][1], found["scratch"][0], found["hints"][0]


def file() -> None:
    """Whole files, everything but the import."""
    print(
        "| file | MB | from scratch, s | with its certificate, s | hints / scratch |\n| --- | --- | --- | --- | --- |"
    )
    conv_net = [(i, o, s) for i, o, s, _ in CONV_NET]
    for name, model in {
        "MLP 784-1024-400-100-10": network([], 0, (784, 1024, 400, 100, 10)),
        "conv 3-64-128/2-256/2 at 32×32, dense 16384-50-10": network(conv_net, 32, (16384, 50, 10)),
        "conv 3-64-128/2-256/2-256/2 at 32×32, dense 4096-64-10": network(
            [*conv_net, (256, 256, 2)], 32, (4096, 64, 10)
        ),
    }.items():
        size, _, scratch, hints = judged(model, 3)
        print(f"| {name} | {size:.1f} | {scratch:.3g} | {hints:.3g} | {hints / scratch:.2f} |", flush=True)


def deep(layers: int = 12) -> None:
    """Wide layers, and how much memory their proof takes."""
    size, bound, scratch, hints = judged(network([(512, 512, 1)] * layers, 32), 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{layers} × (512→512, 3×3) at 32×32, {size:.0f} MB, bound {bound:.6g}: {scratch:.0f} s afresh, {hints:.0f} s"
    )
    print(f"with the certificate's hints; largest resident memory {memory:.0f} MiB", flush=True)


PARTS: Mapping[str, Callable[[], None]] = {"dense": dense, "conv": conv, "file": file, "deep": deep}


def main(arguments: Sequence[str]) -> None:
    """Print the tables asked for (all by default) with the machine they were measured on."""
    print(
        f"{platform.processor() or platform.machine()}, lipdeploy {version()}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}; one BLAS thread, CPU seconds, medians"
    )
    for name in arguments or PARTS:
        print()
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
