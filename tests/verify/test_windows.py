"""Conv, ConvTranspose and pooling as whole ONNX nodes: shapes and norms against ONNX Runtime's own computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.verify.models import best_ratio, bound, judge, matrix, operator_norm, run, single

NORMS = ("l2", "linf", "l1")
UNSUPPORTED = ("NOT_IMPLEMENTED", "INVALID_ARGUMENT", "FAIL", "RUNTIME_EXCEPTION")


def random_node(seed: int) -> tuple[str, tuple[int, ...], dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    operator = str(rng.choice(["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"]))
    axes = int(rng.integers(1, 4))
    groups = int(rng.choice([1, 1, 2, 3]))
    channels, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    kernel = [int(k) for k in rng.integers(1, 4, axes)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [int(s) for s in rng.integers(1, 4, axes)],
        "dilations": [int(d) for d in rng.integers(1, 4, axes)],
    }
    mode = str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if operator == "ConvTranspose" or mode == "NOTSET":
        attributes["pads"] = [int(p) for p in rng.integers(0, 3, 2 * axes)]
    else:
        attributes["auto_pad"] = mode
        attributes["dilations"] = [1] * axes
    constants: dict[str, Any] = {}
    if operator in ("Conv", "ConvTranspose"):
        attributes["group"] = groups
        shape = (outputs, channels // groups) if operator == "Conv" else (channels, outputs // groups)
        constants = {
            "W": rng.standard_normal((*shape, *kernel)).astype(np.float32),
            "b": np.zeros(outputs, np.float32),  # so that unit vectors show the weights without a rounding
        }
    if operator == "ConvTranspose":
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in attributes["strides"]]
    elif operator != "Conv":
        attributes["ceil_mode"] = int(rng.integers(0, 2))
    if operator == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(0, 2))
    image = tuple(int(n) for n in rng.integers(2, (0, 10, 6, 4)[axes] + 1, axes))
    return operator, (channels, *image), constants, attributes


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_random_windows(start: int) -> None:
    judged = 0
    for seed in range(start, start + 40):
        operator, shape, constants, attributes = random_node(seed)
        model = single(operator, shape, constants, **attributes)
        verdicts = {norm: judge(model, norm) for norm in NORMS}
        if verdicts["l2"].status == "refused":
            continue
        try:
            image = run(model, np.zeros((1, *shape), np.float32))
        except Exception as error:  # what ONNX Runtime cannot run needs no bound
            assert any(word in str(error) for word in UNSUPPORTED), error
            continue
        judged += 1
        context = (seed, operator, shape, attributes)
        assert verdicts["l2"].output is not None
        assert verdicts["l2"].output.shape[1:] == image.shape[1:], context
        linear = operator in ("Conv", "ConvTranspose", "AveragePool")
        rows = matrix(model, shape)[0] if linear else None
        for norm, verdict in verdicts.items():
            assert verdict.lipschitz_bound is not None, context
            truth = (
                operator_norm(rows, norm)
                if rows is not None
                else best_ratio(
                    lambda x, m=model: run(m, x.astype(np.float32)).astype(np.float64),
                    shape,
                    norm,
                    seed=seed,
                    samples=32,
                    rounds=2,
                    dtype=np.float32,
                )
            )
            slack = {"AveragePool": 1e-6, "LpPool": 1e-2}.get(operator, 1e-12)
            assert verdict.lipschitz_bound.value >= truth * (1 - slack), (norm, *context)
    assert judged >= 12


@pytest.mark.parametrize(
    ("kernel", "stride", "truth"), [(2, 2, 2**-0.5), (3, 3, 3**-0.5), (3, 2, 0.745), (5, 2, 0.719)]
)
def test_average_pooling_is_tight(kernel: int, stride: int, truth: float) -> None:
    """The exact norms of numerics §3, long images."""
    model = single("AveragePool", (1, 60), kernel_shape=[kernel], strides=[stride])
    assert bound(model) == pytest.approx(truth, abs=2e-3)


def test_overlapping_max_pooling_counts_its_overlap() -> None:
    """kernel = stride = dilation = 2: an entry lies in two windows, so √2."""
    model = single("MaxPool", (1, 8), kernel_shape=[2], strides=[2], dilations=[2])
    assert bound(model) == pytest.approx(2**0.5, rel=1e-9)
    assert bound(single("MaxPool", (1, 8), kernel_shape=[2], strides=[2])) == 1.0
    assert bound(single("MaxPool", (1, 8, 8), kernel_shape=[3, 3], strides=[1, 1])) == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_that_see_only_padding_are_refused(operator: str) -> None:
    """ONNX Runtime fills such a MaxPool window with −3.4e38, which no error bound covers."""
    model = single(operator, (1, 1), kernel_shape=[2], dilations=[2], pads=[1, 1])
    assert judge(model).status == "refused"


def test_transposed_convolution_swaps_one_and_infinity() -> None:
    kernel = np.array([[[1.0, 2.0, 4.0]], [[0.5, 0.5, 8.0]]], np.float32)
    model = single("ConvTranspose", (2, 9), {"W": kernel})
    truth = matrix(model, (2, 9))[0]
    for norm in NORMS:
        assert bound(model, norm) == pytest.approx(operator_norm(truth, norm), rel=2e-2)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"pads": [-1, 1]}, "LIP002"),
        ({"strides": [0]}, "LIP013"),
        ({"dilations": [1, 1]}, "LIP013"),
        ({"kernel_shape": [2]}, "LIP013"),
        ({"group": 3}, "LIP013"),
        ({"auto_pad": "SOMETHING"}, "LIP002"),
        ({"unheard_of": 1}, "LIP002"),
    ],
)
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_odd_attributes_are_refused(operator: str, attributes: dict[str, Any], code: str) -> None:
    weight = np.ones((2, 2, 3), np.float32)
    verdict = judge(single(operator, (2, 8), {"W": weight}, **attributes))
    assert verdict.status == "refused"
    assert verdict.refusals[0].code in {code, "LIP002", "LIP013"}
