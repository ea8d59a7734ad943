"""Baking: constants as evaluation mode uses them, the caller's module untouched, and ONNX nodes that come out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lipdeploy import nn as lipnn


def every_layer() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        lipnn.AOLConv2d(1, 4, 3, padding=1),
        lipnn.LinearSpline(4, 11, 1.0, "absolute_value"),
        lipnn.SpectralConv2d(4, 8, 3, stride=2, padding=1, input_size=(8, 8)),
        lipnn.MaxMin(),
        nn.Flatten(),
        lipnn.BjorckLinear(128, 16),
        lipnn.GroupSort(4),
        lipnn.SpectralLinear(16, 12),
        lipnn.FullSort(),
        lipnn.LInfLinear(12, 12),
        parametrizations.orthogonal(nn.Linear(12, 12)),
        lipnn.LinearSpline(12, 11, 1.0, learnable_scaling=False),
        parametrizations.spectral_norm(nn.Linear(12, 6)),
        parametrizations.weight_norm(nn.Linear(6, 3)),
        lipnn.Scale(2.0),
    )
    with torch.no_grad():
        net[1].scaling.uniform_(0.5, 2)
    return net


def test_baked_equals_evaluation_mode_and_leaves_the_caller_alone() -> None:
    net = every_layer().train()
    before = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    baked = lipnn.bake(net)
    assert torch.equal(random_state, torch.get_rng_state())
    assert net.training and not baked.training
    after = net.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before if isinstance(before[k], torch.Tensor))
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(baked(x), net.eval()(x))


def test_nothing_is_left_to_compute() -> None:
    baked = lipnn.bake(every_layer())
    assert not any(parametrize.is_parametrized(layer) for layer in baked.modules())
    assert not any(parameter.requires_grad for parameter in baked.parameters())
    kinds = [type(layer).__name__ for layer in baked]
    assert kinds == [
        "Conv2d", "StoredLinearSpline", "Conv2d", "MaxMin", "Flatten", "Linear", "GroupSort", "Linear", "FullSort",
        "Linear", "Linear", "StoredLinearSpline", "Linear", "Linear", "Scale",
    ]  # fmt: skip
    assert baked[11].scale is None


def test_shared_layers_stay_shared_and_a_root_can_be_replaced() -> None:
    spline = lipnn.LinearSpline(3)
    baked = lipnn.bake(nn.Sequential(spline, lipnn.BjorckLinear(3, 3), spline))
    assert baked[0] is baked[2]
    assert type(lipnn.bake(spline)).__name__ == "StoredLinearSpline"
    assert type(lipnn.bake(lipnn.BjorckLinear(2, 2))) is nn.Linear


class Halved(nn.Module):
    """w/2 + I: applied twice, it shows."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2 + torch.eye(len(weight))


def halved(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Halved())


def shared_raw_weight() -> nn.Module:
    first, second = halved(nn.Linear(4, 4)), halved(nn.Linear(4, 4))
    second.parametrizations.weight.original = first.parametrizations.weight.original
    return nn.Sequential(first, second)


def plain_layer_with_the_raw_weight() -> nn.Module:
    constrained, plain = lipnn.BjorckLinear(4, 4), nn.Linear(4, 4)
    plain.weight = constrained.parametrizations.weight.original
    with torch.no_grad():
        plain.weight.mul_(3)
    return nn.Sequential(constrained, plain)


def two_constraints_of_one_raw_weight() -> nn.Module:
    first, second = lipnn.SpectralLinear(4, 4), lipnn.LInfLinear(4, 4)
    first.parametrizations.weight.original = second.parametrizations.weight.original
    return nn.Sequential(first, lipnn.LinearSpline(4), second, lipnn.MaxMin())


@pytest.mark.parametrize(
    "make", [shared_raw_weight, plain_layer_with_the_raw_weight, two_constraints_of_one_raw_weight]
)
def test_owners_of_one_raw_weight_are_constrained_once_each(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(5, 4)
    expected = net(x)
    assert torch.equal(lipnn.bake(net)(x), expected)
    assert torch.equal(net(x), expected)


def test_plain_tied_weights_stay_tied() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    baked = lipnn.bake(nn.Sequential(first, lipnn.BjorckLinear(4, 4), second))
    assert baked[0].weight is baked[2].weight and baked[0].weight is not first.weight


def test_a_parametrised_buffer_stays_a_buffer() -> None:
    layer = nn.Linear(3, 3)
    layer.register_buffer("shift", torch.ones(3))
    parametrize.register_parametrization(layer, "shift", nn.ReLU())
    baked = lipnn.bake(halved(layer))
    assert [name for name, _ in baked.named_buffers()] == ["shift"]
    assert {name for name, _ in baked.named_parameters()} == {"weight", "bias"}


def test_a_subclass_keeps_its_own_forward() -> None:
    class Doubled(lipnn.BjorckLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer = Doubled(4, 4).eval()
    baked, x = lipnn.bake(layer), torch.randn(3, 4)
    assert type(baked) is Doubled and not parametrize.is_parametrized(baked)
    assert torch.equal(baked(x), layer(x))


def test_what_cannot_be_copied_says_so() -> None:
    layer = nn.Linear(2, 2)
    layer.cache = layer.weight * 2  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Linear cannot be copied"):
        lipnn.bake(layer)


def exported_nodes(net: nn.Module, x: torch.Tensor) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        lipnn.bake(net), (x,), dynamo=True, opset_version=20, dynamic_shapes=batch, verbose=False
    )
    assert program is not None
    return program.model_proto, list(program.model_proto.graph.node)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5, 4)])
def test_operators_come_out_with_all_attributes_and_a_dynamic_batch(shape: tuple[int, ...]) -> None:
    spline = lipnn.LinearSpline(6, 5, 1.0)
    with torch.no_grad():
        spline.scaling.copy_(torch.linspace(0.5, 2, 6))  # type: ignore[union-attr]
    net = nn.Sequential(lipnn.GroupSort(3, -1 if len(shape) == 2 else 1, "strided", True), spline)
    model, nodes = exported_nodes(net, torch.randn(shape))
    assert [(node.domain, node.op_type) for node in nodes] == [
        ("lipdeploy", "GroupSort"), ("", "Mul"), ("lipdeploy", "LinearSpline"), ("", "Mul"),
    ]  # fmt: skip
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    axis = -1 if len(shape) == 2 else 1
    assert attributes[0] == {"group_size": 3, "axis": axis, "layout": 1, "descending": 1}
    assert attributes[2] == {"lower": -1.0, "knot_spacing": 0.5, "axis": 1}
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert constants[nodes[1].input[1]] == constants[nodes[3].input[1]] == (6, *[1] * (len(shape) - 2))
    assert constants[nodes[2].input[1]] == (6, 5)
    dims = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["batch", *shape[1:]]


def test_a_spline_without_scales_is_one_node() -> None:
    _, nodes = exported_nodes(nn.Sequential(lipnn.LinearSpline(6)), torch.randn(2, 6))
    assert [node.op_type for node in nodes] == ["LinearSpline"]
