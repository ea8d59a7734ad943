"""Random graphs from every operator that has a rule: chains, residuals, branches, pooling, sorting, splines.

A strategy draws a seed and a length; the graph is grown from them step by step, each step choosing among the operators
that fit the current shape. Shapes stay small, so that one example costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


@dataclass
class Growing:
    """A graph under construction; ``name`` and ``shape`` (per sample) are those of its last tensor."""

    rng: np.random.Generator
    input_shape: Shape
    shape: Shape
    name: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def fresh(self) -> str:
        return f"t{len(self.nodes)}_{len(self.constants)}"

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        kind = np.float32 if values.dtype.kind == "f" else np.int64
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def add(self, operator: str, *inputs: str, shape: Shape | None = None, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{self.fresh()}_{k}" for k in range(outputs)]
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        self.name = names[0]
        self.shape = self.shape if shape is None else shape
        return names[0]

    def weights(self, *shape: int) -> str:
        scale = 10.0 ** self.rng.uniform(-1, 1)
        return self.constant(self.rng.standard_normal(shape) * scale)

    def model(self) -> onnx.ModelProto:
        nodes = [*self.nodes, helper.make_node("Identity", [self.name], ["y"])]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.input_shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *self.shape])],
            self.constants,
        )
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("lipdeploy", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


Step = Callable[[Growing], None]
STEPS: list[tuple[Callable[[Growing], bool], Step]] = []


def step(fits: Callable[[Growing], bool] = lambda g: True) -> Callable[[Step], Step]:
    def register(function: Step) -> Step:
        STEPS.append((fits, function))
        return function

    return register


def flat(g: Growing) -> bool:
    return len(g.shape) == 1


def image(g: Growing) -> bool:
    return len(g.shape) == 3 and min(g.shape[1:]) >= 2


@step(flat)
def gemm(g: Growing) -> None:
    size = int(g.rng.integers(1, 6))
    flip = int(g.rng.integers(0, 2))
    weight = g.weights(size, g.shape[0]) if flip else g.weights(g.shape[0], size)
    alpha = float(g.rng.choice([1.0, 1.0, -0.5]))
    g.add("Gemm", g.name, weight, g.weights(size), transB=flip, alpha=alpha, shape=(size,))


@step()
def matmul(g: Growing) -> None:
    size = int(g.rng.integers(1, 6))
    g.add("MatMul", g.name, g.weights(g.shape[-1], size), shape=(*g.shape[:-1], size))


@step(image)
def conv(g: Growing) -> None:
    channels = int(g.rng.integers(1, 4))
    stride = int(g.rng.integers(1, 3))
    kernel = [int(k) for k in g.rng.integers(1, 4, 2)]
    pads = [int(p) for p in g.rng.integers(1, 3, 4)]
    sizes = tuple((n + pads[i] + pads[i + 2] - kernel[i]) // stride + 1 for i, n in enumerate(g.shape[1:]))
    g.add(
        "Conv",
        g.name,
        g.weights(channels, g.shape[0], *kernel),
        strides=[stride] * 2,
        pads=pads,
        shape=(channels, *sizes),
    )


@step(image)
def conv_transpose(g: Growing) -> None:
    channels, stride = int(g.rng.integers(1, 3)), int(g.rng.integers(1, 3))
    if max(g.shape[1:]) > 6:
        return
    sizes = tuple((n - 1) * stride + 2 for n in g.shape[1:])
    weight = g.weights(g.shape[0], channels, 2, 2)
    g.add("ConvTranspose", g.name, weight, strides=[stride] * 2, shape=(channels, *sizes))


@step(image)
def pool(g: Growing) -> None:
    operator = str(g.rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    stride = int(g.rng.integers(1, 3))
    sizes = tuple((n - 2) // stride + 1 for n in g.shape[1:])
    g.add(operator, g.name, kernel_shape=[2, 2], strides=[stride] * 2, shape=(g.shape[0], *sizes))


@step(image)
def global_pool(g: Growing) -> None:
    g.add(str(g.rng.choice(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])), g.name, shape=(g.shape[0], 1, 1))


@step(image)
def batch_normalization(g: Growing) -> None:
    scale, shift, mean = (g.weights(g.shape[0]) for _ in range(3))
    variance = g.constant(np.abs(g.rng.standard_normal(g.shape[0])) + 1e-3)
    g.add("BatchNormalization", g.name, scale, shift, mean, variance)


@step()
def activation(g: Growing) -> None:
    operators = ["Relu", "Abs", "Neg", "Tanh", "Sigmoid", "Softplus", "Gelu", "Mish", "Elu", "Selu", "HardSwish", "Erf"]
    others = ["Celu", "HardSigmoid", "Sin", "Cos", "Softsign", "Atan", "Asinh", "Dropout"]
    g.add(str(g.rng.choice([*operators, *others])), g.name)


@step()
def threshold(g: Growing) -> None:
    if g.rng.random() < 0.5:
        g.add("ThresholdedRelu", g.name, alpha=0.0)
    else:
        limit = float(np.float32(g.rng.uniform(0, 2)))
        g.add("Shrink", g.name, bias=limit, lambd=limit)


@step()
def cast(g: Growing) -> None:
    """To float64, a layer there, and back: the last conversion rounds."""
    g.add("Cast", g.name, to=TensorProto.DOUBLE)
    g.add("Relu", g.name)
    g.add("Cast", g.name, to=TensorProto.FLOAT)


@step()
def leaky(g: Growing) -> None:
    g.add("LeakyRelu", g.name, alpha=float(np.float32(g.rng.uniform(-2, 2))))


@step()
def hinges(g: Growing) -> None:
    """A piecewise-linear function of one tensor in several nodes."""
    source = g.name
    for _ in range(int(g.rng.integers(1, 4))):
        before = g.name
        g.add("Sub", source, g.constant(g.rng.standard_normal(())))
        g.add(str(g.rng.choice(["Relu", "Abs", "Neg"])), g.name)
        bent = g.add("Mul", g.name, g.constant(g.rng.standard_normal(())))
        g.add(str(g.rng.choice(["Add", "Sub", "Max", "Min", "Sum"])), before, bent)


@step()
def softmax(g: Growing) -> None:
    g.add("Softmax", g.name, axis=-1)


@step()
def silu(g: Growing) -> None:
    source = g.name
    gate = g.add("Sigmoid", source)
    g.add("Mul", source, gate)


@step(lambda g: g.shape[0] % 2 == 0)
def group_sort(g: Growing) -> None:
    layout, descending = int(g.rng.integers(0, 2)), int(g.rng.integers(0, 2))
    g.add("GroupSort", g.name, domain="lipdeploy", group_size=2, layout=layout, descending=descending, axis=1)


@step(lambda g: g.shape[0] % 2 == 0)
def householder(g: Growing) -> None:
    angles = g.rng.uniform(-np.pi, np.pi, g.shape[0] // 2)
    sine, cosine = g.constant(np.sin(angles)), g.constant(np.cos(angles))
    g.add("Householder", g.name, sine, cosine, domain="lipdeploy", axis=1, layout=int(g.rng.integers(0, 2)))


@step()
def full_sort(g: Growing) -> None:
    g.add("GroupSort", g.name, domain="lipdeploy", group_size=0)


@step()
def spline(g: Growing) -> None:
    rows = int(g.rng.choice([1, g.shape[0]]))
    lower, spacing = (float(np.float32(v)) for v in (g.rng.uniform(-2, 0), g.rng.uniform(0.05, 1)))
    table = g.weights(rows, int(g.rng.integers(2, 6)))
    g.add("LinearSpline", g.name, table, domain="lipdeploy", lower=lower, knot_spacing=spacing, axis=1)


@step()
def scaled_spline(g: Growing) -> None:
    factors = g.rng.uniform(0.2, 5, (g.shape[0], *[1] * (len(g.shape) - 1)))
    g.add("Mul", g.name, g.constant(factors))
    spline(g)
    g.add("Mul", g.constant(1 / factors), g.name)


@step()
def constant_operand(g: Growing) -> None:
    operator = str(g.rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min"]))
    keep = g.rng.random(len(g.shape)) < 0.5
    shape = tuple(n if k else 1 for n, k in zip(g.shape, keep, strict=True))
    values = g.rng.uniform(0.3, 2, shape) * g.rng.choice([-1, 1], shape)
    g.add(operator, g.name, g.constant(values))


@step(lambda g: g.shape[-1] == 1)
def copying_operand(g: Growing) -> None:
    operator = str(g.rng.choice(["Add", "Mul"]))
    g.add(operator, g.constant(g.rng.uniform(0.3, 2, (3,))), g.name, shape=(*g.shape[:-1], 3))


@step()
def residual(g: Growing) -> None:
    source, shape = g.name, g.shape
    for _ in range(int(g.rng.integers(1, 3))):
        activation(g)
    operator = str(g.rng.choice(["Add", "Sub", "Max", "Min", "Sum"]))
    g.add(operator, source, g.name, shape=shape)


@step()
def root_of_squares(g: Growing) -> None:
    """√(a² + b² (+ c²)) of tensors that move together: a modulus, an ℓ2 residual."""
    sources, shape = [g.name], g.shape
    for _ in range(int(g.rng.integers(1, 3))):
        sources.append(g.add(str(g.rng.choice(["Neg", "Tanh", "Relu"])), sources[0], shape=shape))
    squares = [g.add("Mul", source, source) for source in sources]
    total = squares[0]
    for square in squares[1:]:
        total = g.add("Add", total, square)
    g.add("Sqrt", total)


@step()
def several(g: Growing) -> None:
    """Three tensors that move together meet in one."""
    source, shape = g.name, g.shape
    others = [g.add(str(g.rng.choice(["Neg", "Tanh", "Relu", "Abs"])), source, shape=shape) for _ in range(2)]
    g.add(str(g.rng.choice(["Sum", "Mean", "Max", "Min"])), source, *others, shape=shape)


@step()
def masked(g: Growing) -> None:
    """A mask of the file's chooses between two tensors."""
    source, shape = g.name, g.shape
    mask = g.constant(np.zeros(0))  # replaced: masks are of another type
    g.constants[-1] = numpy_helper.from_array(g.rng.random(shape) < 0.5, mask)
    other = g.add("Neg", source, shape=shape)
    g.add("Where", mask, source, other, shape=shape)


@step(lambda g: len(g.shape) > 1)
def length(g: Growing) -> None:
    axis = int(g.rng.integers(1, len(g.shape) + 1))
    shape = tuple(n for i, n in enumerate(g.shape) if i + 1 != axis)
    operator = str(g.rng.choice(["ReduceL1", "ReduceL2", "ReduceLogSumExp"]))
    g.add(operator, g.name, g.constant(np.array([axis])), keepdims=0, shape=shape)


@step(lambda g: g.shape[0] <= 4)
def rectified_twice(g: Growing) -> None:
    """CReLU: (relu(x), relu(−x))."""
    source, shape = g.name, g.shape
    first = g.add("Relu", source, shape=shape)
    second = g.add("Relu", g.add("Neg", source, shape=shape), shape=shape)
    g.add("Concat", first, second, axis=1, shape=(2 * shape[0], *shape[1:]))


@step()
def log_sigmoid(g: Growing) -> None:
    clip(g)  # far below 0 the evaluator's sigmoid is 0, and its logarithm no number
    g.add("Log", g.add("Sigmoid", g.name))


@step(lambda g: int(np.prod(g.shape)) <= 40)
def tile(g: Growing) -> None:
    repeats = g.rng.integers(1, 3, len(g.shape))
    shape = tuple(int(n * r) for n, r in zip(g.shape, repeats, strict=True))
    g.add("Tile", g.name, g.constant(np.array([1, *repeats])), shape=shape)


@step()
def slopes_per_channel(g: Growing) -> None:
    slopes = g.rng.uniform(-1.5, 1.5, (g.shape[0], *[1] * (len(g.shape) - 1)))
    g.add("PRelu", g.name, g.constant(slopes))


@step(image)
def enlarge(g: Growing) -> None:
    if max(g.shape[1:]) > 4:
        return
    scales = g.constant(np.array([1.0, 1.0, 2.0, 2.0]))
    options = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    shape = (g.shape[0], 2 * g.shape[1], 2 * g.shape[2])
    g.add("Resize", g.name, "", scales, shape=shape, **options)


@step()
def branches(g: Growing) -> None:
    source = g.name
    first = g.add("Relu", source)
    second = g.add("Neg", source) if g.rng.random() < 0.5 else g.add("Tanh", source)
    third = g.add("Relu", second) if g.rng.random() < 0.5 else second
    axis = int(g.rng.integers(1, len(g.shape) + 1))
    if g.shape[axis - 1] > 6:
        return
    shape = tuple(2 * n if i + 1 == axis else n for i, n in enumerate(g.shape))
    g.add("Concat", first, third, axis=axis, shape=shape)


@step(lambda g: g.shape[0] % 2 == 0)
def halves(g: Growing) -> None:
    first = g.add("Split", g.name, outputs=2, axis=1, num_outputs=2, shape=(g.shape[0] // 2, *g.shape[1:]))
    second = g.nodes[-1].output[1]
    high, low = g.add("Max", first, second), g.add("Min", first, second)
    g.add("Concat", high, low, axis=1, shape=(g.shape[0] * 2, *g.shape[1:]))


@step()
def centering(g: Growing) -> None:
    source, shape = g.name, g.shape
    axis = int(g.rng.integers(1, len(shape) + 1))
    mean = g.add("ReduceMean", source, g.constant(np.array([axis])), keepdims=1)
    g.add("Sub", source, mean, shape=shape)


@step(lambda g: len(g.shape) > 1)
def reduce(g: Growing) -> None:
    operator = str(g.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"]))
    axis = int(g.rng.integers(1, len(g.shape) + 1))
    shape = tuple(n for i, n in enumerate(g.shape) if i + 1 != axis)
    g.add(operator, g.name, g.constant(np.array([axis])), keepdims=0, shape=shape)


@step()
def rearrange(g: Growing) -> None:
    size = int(np.prod(g.shape))
    order = g.rng.permutation(len(g.shape))
    g.add("Transpose", g.name, perm=[0, *(order + 1).tolist()], shape=tuple(g.shape[i] for i in order))
    if g.rng.random() < 0.3:
        g.add("Flatten", g.name, shape=(size,))
    if g.rng.random() < 0.3 and size % 2 == 0:
        g.add(
            "Reshape",
            g.name,
            g.constant(np.array([0, 2, -1] if len(g.shape) > 1 else [-1, 2, size // 2])),
            shape=(2, size // 2),
        )


@step(lambda g: len(g.shape) == 3 and g.shape[0] % 4 == 0)
def unfold_depth(g: Growing) -> None:
    channels, height, width = g.shape
    mode = str(g.rng.choice(["DCR", "CRD"]))
    g.add("DepthToSpace", g.name, blocksize=2, mode=mode, shape=(channels // 4, height * 2, width * 2))


@step(lambda g: len(g.shape) == 3 and g.shape[1] % 2 == g.shape[2] % 2 == 0)
def fold_space(g: Growing) -> None:
    channels, height, width = g.shape
    g.add("SpaceToDepth", g.name, blocksize=2, shape=(channels * 4, height // 2, width // 2))


@step()
def repeat(g: Growing) -> None:
    """Unsqueeze, Expand along the new axis, Slice of that axis or Squeeze of it."""
    shape, count = g.shape, int(g.rng.integers(1, 4))
    g.add("Unsqueeze", g.name, g.constant(np.array([1])), shape=(1, *shape))
    if count == 1:
        g.add("Squeeze", g.name, g.constant(np.array([1])), shape=shape)
        return
    g.add("Expand", g.name, g.constant(np.array([1, count, *(1 for _ in shape)])), shape=(count, *shape))
    start, end, axis, by = (g.constant(np.array([value])) for value in (count - 1, -count - 1, 1, -1))
    g.add("Slice", g.name, start, end, axis, by)
    g.add(
        "Reshape", g.name, g.constant(np.array([0, count * shape[0], *shape[1:]])), shape=(count * shape[0], *shape[1:])
    )


@step()
def select(g: Growing) -> None:
    axis = int(g.rng.integers(1, len(g.shape) + 1))
    size = g.shape[axis - 1]
    indices = g.rng.integers(-size, size, int(g.rng.integers(1, 5)))
    shape = tuple(len(indices) if i + 1 == axis else n for i, n in enumerate(g.shape))
    g.add("Gather", g.name, g.constant(indices), axis=axis, shape=shape)


@step()
def top(g: Growing) -> None:
    axis = int(g.rng.integers(1, len(g.shape) + 1))
    count = int(g.rng.integers(1, g.shape[axis - 1] + 1))
    shape = tuple(count if i + 1 == axis else n for i, n in enumerate(g.shape))
    largest = int(g.rng.integers(0, 2))
    g.add("TopK", g.name, g.constant(np.array([count])), outputs=2, axis=axis, largest=largest, shape=shape)


@step(image)
def pad(g: Growing) -> None:
    mode = str(g.rng.choice(["constant", "edge", "reflect", "wrap"]))
    pads = np.array([0, 0, 1, 0, 0, 0, 1, 1])
    shape = (g.shape[0], g.shape[1] + 2, g.shape[2] + 1)
    if max(shape) <= 8:
        g.add("Pad", g.name, g.constant(pads), mode=mode, shape=shape)


@step()
def clip(g: Growing) -> None:
    low, high = (g.constant(np.asarray(v)) for v in (-1.0, 1.5))
    g.add("Clip", g.name, low, high)


def grow(seed: int, length: int, *last: Step) -> onnx.ModelProto:
    """The graph that belongs to a seed, with the steps ``last`` at its end."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 7)),) if rng.random() < 0.5 else tuple(int(n) for n in rng.integers(2, 5, 3))
    g = Growing(rng, shape, shape)
    for _ in range(length):
        if int(np.prod(g.shape)) > 400:
            break
        fitting = [function for fits, function in STEPS if fits(g)]
        fitting[int(rng.integers(0, len(fitting)))](g)
    for final in last:
        final(g)
    return g.model()


def flat_then_gemm(g: Growing) -> None:
    g.add("Flatten", g.name, shape=(int(np.prod(g.shape)),))
    gemm(g)


models = st.builds(grow, st.integers(0, 2**32 - 1), st.integers(1, 6))
#: Several tensors that move together meet under a root, in front of the layer whose weights bound the class pairs.
rooted = st.builds(
    lambda seed, length: grow(seed, length, root_of_squares, flat_then_gemm),
    st.integers(0, 2**32 - 1),
    st.integers(0, 3),
)
