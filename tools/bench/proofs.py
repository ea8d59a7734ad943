"""Time and slack of the proofs of dense and convolution norms, on one thread: ``python tools/bench/proofs.py``.

Truth: the largest singular value by ARPACK (SciPy, float64) on the real operator: a lower estimate, good to 1e-14.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, svds

from lipdeploy.verify.norms import Norm
from lipdeploy.verify.operator_norm import Convolution, spectral_norm_up

REPEATS = 3


def cpu_seconds(function: Callable[[], float]) -> tuple[float, float]:
    """(median CPU seconds, result)."""
    times, result = [], 0.0
    for _ in range(REPEATS):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return statistics.median(times), result


def dense(rng: np.random.Generator) -> None:
    """Gaussian and float32-rounded orthogonal matrices."""
    print("| matrix | kind | bound / truth − 1 | cpu s |\n| --- | --- | --- | --- |")
    for rows, columns in ((256, 256), (512, 512), (784, 512), (1024, 1024), (2048, 2048)):
        gauss = rng.standard_normal((rows, columns))
        for kind, weight in (("gauss", gauss), ("orthogonal", np.linalg.qr(gauss)[0])):
            stored = weight.astype(np.float32).astype(np.float64)
            seconds, bound = cpu_seconds(lambda w=stored: spectral_norm_up(w).value)  # type: ignore[misc]
            truth = float(svds(stored, k=1, return_singular_vectors=False, tol=1e-14)[0])
            print(f"| {rows}×{columns} | {kind} | {bound / truth - 1:.1e} | {seconds:.3f} |")


def convolutions(rng: np.random.Generator) -> None:
    """The network 3-64-128(s2)-256(s2) at 32×32."""
    print("\n| conv 3×3, pad 1 | bound | truth (ARPACK) | looseness | cpu s |\n| --- | --- | --- | --- | --- |")
    total = 0.0
    for inputs, outputs, stride, size in ((3, 64, 1, 32), (64, 128, 2, 32), (128, 256, 2, 16)):
        kernel = rng.uniform(-1, 1, (outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        kernel = kernel.astype(np.float32).astype(np.float64)
        operator = Convolution(kernel, (size,) * 2, ((1, 1),) * 2, (stride,) * 2, (1, 1), 1, (size // stride,) * 2)
        seconds, bound = cpu_seconds(lambda op=operator: op.gains((Norm.L2,))[Norm.L2, Norm.L2].value)  # type: ignore[misc]
        truth = largest_singular_value(kernel, size, stride)
        total += seconds
        layer = f"{inputs}→{outputs} s{stride} @{size}"
        print(f"| {layer} | {bound:.6f} | {truth:.6f} | {bound / truth - 1:.1e} | {seconds:.2f} |")
    print(f"\nwhole conv net: {total:.2f} cpu s, one thread")


def largest_singular_value(kernel: np.ndarray, size: int, stride: int) -> float:
    """ARPACK on the zero-padded, strided convolution (pad 1)."""
    outputs, inputs = kernel.shape[:2]
    half = size // stride

    def forward(x: np.ndarray) -> np.ndarray:
        image = np.pad(x.reshape(inputs, size, size), ((0, 0), (1, 1), (1, 1)))
        taps = (image[:, a : a + size : stride, b : b + size : stride] for a in range(3) for b in range(3))
        stack = np.stack([tap.reshape(inputs, -1) for tap in taps], axis=1).reshape(inputs * 9, -1)
        return (kernel.reshape(outputs, -1) @ stack).reshape(-1)

    def backward(y: np.ndarray) -> np.ndarray:
        stack = (kernel.reshape(outputs, -1).T @ y.reshape(outputs, -1)).reshape(inputs, 3, 3, half, half)
        image = np.zeros((inputs, size + 2, size + 2))
        for a in range(3):
            for b in range(3):
                image[:, a : a + size : stride, b : b + size : stride] += stack[:, a, b]
        return image[:, 1:-1, 1:-1].reshape(-1)

    shape = (outputs * half * half, inputs * size * size)
    operator = LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=np.float64)
    return float(svds(operator, k=1, return_singular_vectors=False, tol=1e-10)[0])


def main() -> None:
    """Print both tables with the machine they were measured on."""
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    rng = np.random.default_rng(0)
    dense(rng)
    convolutions(rng)


if __name__ == "__main__":
    main()
