"""Attacks on the hints that a certificate stores per node: they may cost time or looseness, never the truth.

The certificate of a convolutional net names, for every layer, the torus, its twist and the shift of the factorisation.
A liar writes other ones: a torus too small for the padding (whose circulant may have a smaller norm than the layer), a
shift below the largest eigenvalue, numbers that are no numbers. Nothing below the truth may come out, and a statement
below the truth must not pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipdeploy.verify import verify
from lipdeploy.verify.certificate import certificate_path
from lipdeploy.verify.operator_norm import symbol

SIZE = 20


@pytest.fixture(autouse=True, params=["binary64", "screened"])
def screening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lies where frequencies are screened in binary32 first, as those of wide layers are."""
    if request.param == "screened":
        monkeypatch.setattr(symbol, "SCREENED_FROM", 1)


def network() -> tuple[onnx.ModelProto, np.ndarray]:
    """Conv → Relu → Conv, 8 and 16 channels, large enough for the torus; and the first kernel."""
    rng = np.random.default_rng(4)
    kernels = [rng.standard_normal(shape).astype(np.float32) / 9 for shape in ((16, 8, 3, 3), (8, 16, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["u"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["u"], ["v"], name="relu"),
        helper.make_node("Conv", ["v", "b"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 8, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(kernel, name) for kernel, name in zip(kernels, "ab", strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), kernels[0]


def largest_symbol(kernel: np.ndarray, torus: tuple[int, int]) -> float:
    symbols = np.fft.fft2(kernel.astype(np.float64), torus)
    return float(np.linalg.norm(np.moveaxis(symbols, (0, 1), (2, 3)), 2, axis=(-2, -1)).max())


def power_iteration(kernel: np.ndarray, steps: int = 60) -> float:
    """A lower bound of the zero-padded layer's norm: ‖Mx‖ for a unit vector x."""
    rng, k = np.random.default_rng(0), kernel.astype(np.float64)
    x = rng.standard_normal((k.shape[1], SIZE, SIZE))
    value = 0.0
    for _ in range(steps):
        x /= np.linalg.norm(x)
        wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        y = sum(
            np.einsum("oi,ihw->ohw", k[:, :, a, b], wide[:, a : a + SIZE, b : b + SIZE])
            for a in range(3)
            for b in range(3)
        )
        value = float(np.linalg.norm(y))
        back = np.zeros_like(wide)
        for a in range(3):
            for b in range(3):
                back[:, a : a + SIZE, b : b + SIZE] += np.einsum("oi,ohw->ihw", k[:, :, a, b], y)
        x = back[:, 1:-1, 1:-1]
    return value


def written(folder: Path) -> tuple[Path, dict[str, Any], float, np.ndarray]:
    """(model file, its certificate, the bound proven without hints, first kernel)."""
    proto, kernel = network()
    path = folder / "net.onnx"
    onnx.save(proto, path)
    verdict = verify(path)
    assert verdict.status == "verified" and verdict.lipschitz_bound is not None
    verdict.write_certificate(certificate_path(path))
    return path, json.loads(certificate_path(path).read_text()), verdict.lipschitz_bound.value, kernel


def lie(path: Path, content: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    for node in content["nodes"]:
        if node["op"] == "Conv":
            change(node["hints"])
    certificate_path(path).write_text(json.dumps(content))


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a torus without room": lambda h: h.update(torus=[SIZE, SIZE]),
    "a torus of one": lambda h: h.update(torus=[1, 1]),
    "a huge torus": lambda h: h.update(torus=[2**30, 2**30]),
    "another twist": lambda h: h.update(twist=[1 - t for t in h["twist"]]),
    "no such twist": lambda h: h.update(twist=[7, -1]),
    "axes that are not there": lambda h: h.update(torus=[21, 21, 21], twist=[0, 0, 0]),
    "a low shift": lambda h: h.update(tau=(float.fromhex(h["tau"]) * 0.5).hex()),
    "a tiny shift": lambda h: h.update(tau="0x1p-1000"),
    "a high shift": lambda h: h.update(tau=(float.fromhex(h["tau"]) * 2.0).hex()),
    "an absurd shift": lambda h: h.update(tau="0x1p+1020"),
    "an infinite shift": lambda h: h.update(tau="inf"),
    "no number": lambda h: h.update(tau=None, torus="21", twist={}),
    "a matrix": lambda h: h.update(matrix="0x1p-9"),
    "nothing": lambda h: h.clear(),
}


@pytest.mark.parametrize("name", sorted(LIES))
def test_lying_hints_prove_nothing_false(name: str, tmp_path: Path) -> None:
    path, content, honest, kernel = written(tmp_path)
    lie(path, content, LIES[name])
    verdict = verify(path)
    assert verdict.status == "verified", verdict.refusals  # the numbers are true: they are proven without the hints
    assert verdict.nodes[0].gain.value >= power_iteration(kernel)
    assert verdict.lipschitz_bound is not None
    assert verdict.lipschitz_bound.value >= honest * (1 - 1e-9) or "twist" in name
    assert verdict.lipschitz_bound.value <= honest * (1 + 2e-9)  # and cost time only


@pytest.mark.parametrize("name", sorted(LIES))
def test_lying_hints_do_not_carry_a_false_statement(name: str, tmp_path: Path) -> None:
    """The truth is stated as 1 % less: with any hints that is an integrity failure."""
    path, content, honest, _ = written(tmp_path)
    LIES[name](content["nodes"][0]["hints"])
    value = honest * 0.99
    content["statement"] |= {"lipschitz_bound": f"{value:.17g}", "lipschitz_bound_hex": value.hex()}
    certificate_path(path).write_text(json.dumps(content))
    assert verify(path).status == "integrity"


@pytest.mark.parametrize("name", sorted(LIES))
def test_lying_hints_do_not_break_a_true_statement_in_another_norm(name: str, tmp_path: Path) -> None:
    """What is asked is about l1, what is stated about l2: that is proven with the hints, then without."""
    path, content, _, _ = written(tmp_path)
    lie(path, content, LIES[name])
    assert verify(path, norm="l1").status == "verified"


@pytest.mark.parametrize("name", sorted(LIES))
def test_lying_hints_do_not_fail_a_limit(name: str, tmp_path: Path) -> None:
    """A model within its limit stays within it: where stored hints prove too little, the search starts afresh."""
    path, content, honest, _ = written(tmp_path)
    lie(path, content, LIES[name])
    assert verify(path, max_lipschitz=honest * (1 + 1e-8)).status == "verified"


def test_the_circulant_that_a_liar_would_like_is_smaller() -> None:
    """A kernel of alternating signs resonates at frequency π, which a torus of odd length does not have."""
    kernel = np.ones((1, 1, 1, 3)) * np.array([1.0, -2.0, 1.0])
    assert largest_symbol(kernel, (1, 3)) < 3.01  # the circulant on three pixels: 3
    long = np.zeros((20, 22))
    for row in range(20):
        long[row, row : row + 3] = kernel[0, 0, 0]
    assert np.linalg.norm(long, 2) > 3.9


def test_honest_hints_give_the_same_bound_without_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, honest, _ = written(tmp_path)
    monkeypatch.setattr(symbol, "CHUNK_ENTRIES", 1 << 10)  # several calls, so that there is something to screen
    counted = {"cholesky": 0, "eigvalsh": 0}

    def counting(name: str) -> None:
        original = getattr(np.linalg, name)

        def count(*args: Any) -> Any:
            counted[name] += 1
            return original(*args)

        monkeypatch.setattr(np.linalg, name, count)

    for name in counted:
        counting(name)
    verify(path, check_certificate=False)
    scratch = dict(counted)
    counted |= {"cholesky": 0, "eigvalsh": 0}
    verdict = verify(path)
    assert verdict.status == "verified"
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value <= honest * (1 + 1e-10)
    assert counted["eigvalsh"] == 0 < scratch["eigvalsh"]
    assert counted["cholesky"] <= 1.2 * scratch["cholesky"]  # those that a screen leaves over differ a little


@pytest.mark.parametrize("shift", ["0x1p-30", "0x1p+60", "nan", "-0x1p+3", 7, None])
def test_a_lying_shift_for_a_small_map(shift: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.attacks.test_lying_hints.SIZE", 6)
    path, content, honest, kernel = written(tmp_path)
    assert "matrix" in content["nodes"][0]["hints"]
    lie(path, content, lambda h: h.update(matrix=shift))
    verdict = verify(path, max_lipschitz=honest * (1 + 1e-8))
    assert verdict.status == "verified", verdict.refusals
    assert verdict.nodes[0].gain.value >= power_iteration(kernel)
