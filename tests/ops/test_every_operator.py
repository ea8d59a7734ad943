"""Walks the list of operators and fails when a piece of one is missing, so that no one has to remember."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from lipdeploy.ops import DOMAIN, OPERATORS, function_bodies
from tests.ops.cases import TYPES
from tests.ops.runners import Entries

ROOT = Path(__file__).resolve().parents[2]


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


operators = pytest.mark.parametrize("name", sorted(OPERATORS))


@operators
def test_has_its_own_file_with_a_numpy_meaning(name: str) -> None:
    operator = OPERATORS[name]
    assert operator.name == name
    assert operator.evaluate.__module__ == f"lipdeploy.ops.{snake(name)}"


@operators
def test_has_a_function_body_in_every_opset_and_type(name: str) -> None:
    operator = OPERATORS[name]
    required = {a.name: 1.0 for a in operator.attributes if a.default is None}
    node = helper.make_node(name, list(operator.inputs), ["Y"], domain=DOMAIN, **required)
    graph = helper.make_graph([node], "g", [], [])
    for opset in range(17, 24):
        for _, element_type in TYPES.values():
            (function,) = function_bodies(graph, {element_type}, opset)
            assert (function.domain, function.name) == (DOMAIN, name)
            assert all(inner.domain == "" for inner in function.node)
    assert function_bodies(graph, {TensorProto.FLOAT, TensorProto.DOUBLE}, 20)


@operators
def test_has_a_cpu_kernel_for_every_type(name: str, ops_library: Path) -> None:
    entries = Entries(ops_library, "cpu")
    assert [t for t in TYPES if not entries.has(snake(name), t)] == []


@operators
def test_has_one_header_and_a_cuda_kernel_that_the_emulator_runs(name: str, emulated_library: Path) -> None:
    header = (ROOT / "custom_ops/include/lipdeploy" / f"{snake(name)}.h").read_text()
    for promise in ("types", "valid", "error", "NaN", "-0", "Inf"):
        assert f"// {promise}" in header or f"// +{promise}" in header or f"// +-{promise}" in header, promise
    assert "Ort" not in header.replace("ONNX Runtime", "")
    assert (ROOT / "custom_ops/src/cuda" / f"{snake(name)}.cu").is_file()
    assert (ROOT / "custom_ops/src/cpu" / f"{snake(name)}.cc").is_file()
    entries = Entries(emulated_library, "emulated")
    assert [t for t in TYPES if not entries.has(snake(name), t)] == []


@operators
def test_is_registered_with_onnxruntime(name: str) -> None:
    source = (ROOT / "custom_ops/src/register.cc").read_text()
    assert f"add_all_types<{name}Kernel, Provider>" in source


@operators
def test_has_a_torch_module(name: str) -> None:
    import torch

    import lipdeploy.nn

    assert issubclass(getattr(lipdeploy.nn, name), torch.nn.Module)


@operators
def test_has_a_verifier_rule(name: str) -> None:
    from lipdeploy.verify.rules import RULES

    assert (DOMAIN, name) in RULES


@operators
def test_has_a_page_that_names_every_attribute(name: str) -> None:
    page = (ROOT / "docs/operators" / f"{snake(name)}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for attribute in OPERATORS[name].attributes:
        assert f"`{attribute.name}`" in page
    for word in ("NaN", "−0", "±Inf", "float16", "bfloat16", "Lipschitz"):
        assert word in page
