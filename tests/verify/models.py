"""Small models for the verifier's tests, and independent ways to run them.

Truth comes from ONNX Runtime (float32, no optimisation) or from onnx's reference evaluator in float64, never from the
verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy import special

from lipdeploy.ops import OPERATORS
from lipdeploy.verify import Verdict, verify

Array = np.ndarray[Any, np.dtype[Any]]


def model(graph: str, *, opset: int = 20, imports: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """A model from ONNX text: the graph (and functions after it), in the given opset."""
    versions = {"": opset, **(imports or {})}
    header = ", ".join(f'"{domain}": {version}' for domain, version in versions.items())
    return parser.parse_model(f"<ir_version: 10, opset_import: [{header}]>\n{graph}")


def single(
    operator: str,
    shape: Sequence[int],
    constants: Mapping[str, Array | None] | None = None,
    *,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node ``y = operator(x, *constants)`` for x of shape (N, *shape); ``None`` leaves an input out."""
    stored = dict(constants or {})
    names = ["x", *("" if value is None else name for name, value in stored.items())]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", *shape])],
        [helper.make_tensor_value_info("y", attributes.get("to", kind), None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items() if value is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def judge(proto: onnx.ModelProto | str, norm: str = "l2", **options: Any) -> Verdict:
    """Verify a model (or ONNX text of its graph)."""
    proto = model(proto) if isinstance(proto, str) else proto
    return verify(proto.SerializeToString(), norm=norm, **options)


def bound(proto: onnx.ModelProto | str, norm: str = "l2", **options: Any) -> float:
    """The proven bound; fails when the model is refused."""
    verdict = judge(proto, norm, **options)
    assert verdict.status == "verified", verdict.refusals
    assert verdict.lipschitz_bound is not None
    return verdict.lipschitz_bound.value


def codes(proto: onnx.ModelProto | str, norm: str = "l2", **options: Any) -> list[str]:
    """The codes of all refusals; fails when the model is accepted."""
    verdict = judge(proto, norm, **options)
    assert verdict.status == "refused", f"accepted with bound {verdict.lipschitz_bound}"
    return [refusal.code for refusal in verdict.refusals]


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, one thread, graph as it is."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, *inputs: Array) -> Array:
    """The first output, from ONNX Runtime."""
    feeds = {value.name: array for value, array in zip(proto.graph.input, inputs, strict=True)}
    return np.asarray(session(proto).run(None, feeds)[0])


def matrix(proto: onnx.ModelProto, shape: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """(matrix, output shape per sample) of a linear (or affine) model, from unit vectors through ONNX Runtime.

    Unit vectors pick out stored float32 weights, so the entries are exact unless the operator divides.
    """
    size = int(np.prod(shape))
    runner = session(proto)
    name = proto.graph.input[0].name
    rows = np.eye(size, dtype=np.float32).reshape(size, 1, *shape)
    zero = runner.run(None, {name: np.zeros((1, *shape), np.float32)})[0].astype(np.float64)
    images = [runner.run(None, {name: row})[0].astype(np.float64) - zero for row in rows]
    return np.stack([image.reshape(-1) for image in images], axis=1), zero.shape[1:]


def operator_norm(weight: Array, norm: str) -> float:
    """The exact operator norm of a matrix, up to NumPy's rounding."""
    if not weight.size:
        return 0.0
    truths: dict[str, Callable[[Array], float]] = {
        "l2": lambda w: float(np.linalg.norm(w, 2)),
        "linf": lambda w: float(np.abs(w).sum(axis=1).max()),
        "l1": lambda w: float(np.abs(w).sum(axis=0).max()),
        "l2-linf": lambda w: float(np.sqrt(np.square(w).sum(axis=1)).max()),
        "l1-linf": lambda w: float(np.abs(w).max()),
    }
    return truths[norm](weight)


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every float32 tensor turned into float64, exactly."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in wide.graph.initializer:
        _widen(tensor)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    del wide.graph.value_info[:]
    return wide


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


class GroupSort(OpRun):
    """The operator's NumPy meaning, for the reference evaluator."""

    op_domain = "lipdeploy"

    def _run(self, x: Array, group_size: int = 2, axis: int = 1, layout: int = 0, descending: int = 0) -> tuple[Array]:
        attributes = {"group_size": group_size, "axis": axis, "layout": layout, "descending": descending}
        return (OPERATORS["GroupSort"].evaluate(x, **OPERATORS["GroupSort"].complete(_given(attributes))),)


class LinearSpline(OpRun):
    """The operator's NumPy meaning, for the reference evaluator."""

    op_domain = "lipdeploy"

    def _run(self, x: Array, c: Array, lower: float = 0.0, knot_spacing: float = 1.0, axis: int = 1) -> tuple[Array]:
        attributes = {"lower": lower, "knot_spacing": knot_spacing, "axis": axis}
        return (OPERATORS["LinearSpline"].evaluate(x, c, **OPERATORS["LinearSpline"].complete(_given(attributes))),)


class Householder(OpRun):
    """The operator's NumPy meaning, for the reference evaluator."""

    op_domain = "lipdeploy"

    def _run(self, x: Array, s: Array, c: Array, axis: int = 1, layout: int = 1) -> tuple[Array]:
        attributes = {"axis": axis, "layout": layout}
        return (OPERATORS["Householder"].evaluate(x, s, c, **OPERATORS["Householder"].complete(_given(attributes))),)


class Erf(OpRun):
    """The evaluator's own computes in float32, whatever it is given."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (special.erf(x),)


class GlobalLpPool(OpRun):
    """The evaluator has none."""

    op_domain = ""

    def _run(self, x: Array, p: int | None = None) -> tuple[Array]:
        order = 2 if p is None else p
        return (np.linalg.norm(x.reshape(*x.shape[:2], -1), order, axis=2).reshape(*x.shape[:2], *[1] * (x.ndim - 2)),)


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def double_runner(proto: onnx.ModelProto) -> Callable[[Array], Array]:
    """x ↦ f(x) in float64 through onnx's reference evaluator: the real network up to about 1e-15."""
    wide = widened(proto)
    evaluator = ReferenceEvaluator(wide, new_ops=[GroupSort, Householder, LinearSpline, Erf, GlobalLpPool])
    name = wide.graph.input[0].name

    def evaluate(x: Array) -> Array:
        return np.asarray(evaluator.run(None, {name: np.asarray(x, np.float64)})[0])

    return evaluate


def lengths(rows: Array, kind: str) -> Array:
    """ℓ1, ℓ2 or ℓ∞ norm of every row of a batch."""
    flat = np.abs(rows.reshape(len(rows), -1))
    if kind == "l1":
        return np.asarray(flat.sum(axis=1))
    return np.asarray(flat.max(axis=1) if kind == "linf" else np.sqrt(np.square(flat).sum(axis=1)))


def best_ratio(
    evaluate: Callable[[Array], Array],
    shape: Sequence[int],
    norm: str = "l2",
    *,
    seed: int = 0,
    samples: int = 64,
    rounds: int = 3,
    dtype: type[np.floating[Any]] = np.float64,
) -> float:
    """The largest ‖f(x) − f(y)‖_q / ‖x − y‖_p seen: random pairs at many scales, then moves around the best ones.

    The points are numbers of ``dtype``, so that a float32 program sees exactly what is measured.
    """
    ins, outs = {"l2-linf": ("l2", "linf"), "l1-linf": ("l1", "linf")}.get(norm, (norm, norm))
    rng = np.random.default_rng(seed)
    size = (samples, *shape)
    x = rng.standard_normal(size) * 10.0 ** rng.uniform(-2, 1, (samples, *[1] * len(shape)))
    step = rng.standard_normal(size) * 10.0 ** rng.uniform(-5, 1, (samples, *[1] * len(shape)))
    sparse = rng.random(size) < 0.5
    step = np.where(sparse & (rng.random((samples, *[1] * len(shape))) < 0.5), 0.0, step)
    best = 0.0
    for _ in range(rounds):
        first, second = (point.astype(dtype).astype(np.float64) for point in (x, x + step))
        with np.errstate(all="ignore"):
            ratio = np.nan_to_num(lengths(evaluate(second) - evaluate(first), outs) / lengths(second - first, ins))
        best = max(best, float(ratio.max()))
        top = np.argsort(ratio)[-8:][rng.integers(0, 8, samples)]
        noise = rng.standard_normal(size) * 0.3 * np.abs(step[top]).max(axis=tuple(range(1, len(size))), keepdims=True)
        x, step = x[top], step[top] + noise * (rng.random(size) < 0.5)
    return best
