"""Mutate the fields of valid models: whatever comes out is judged as the runtime runs it, refused, or is no model.

Bytes rarely survive a flip as a model (test_mutations.py); fields do: names that meet other names, repeated and missing
nodes, sizes at the edges of 64 bits, attributes that change places, tensors whose numbers are not finite.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from lipdeploy.errors import InputError
from lipdeploy.ops import attach_functions
from lipdeploy.verify import verify
from lipdeploy.verify.digest import semantic_sha256
from tests.properties.graphs import grow
from tests.properties.test_mutations import same_meaning
from tools.soundness.run import PROBES

INTEGERS = [0, 1, -1, 2, 3, 7, 64, 255, 10**6, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, -(2**62), 2**63 - 1, -(2**63)]
REALS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e30, -1e30, 1e-30, 1e-45, float("nan"), float("inf")]
TEXTS = [
    "",
    "x",
    "y",
    "N",
    "lipdeploy",
    "ai.onnx",
    "Conv",
    "Add",
    "If",
    "GroupSort",
    "\0",
    "\x1b[31m",
    "../x",
    "é",
    "a" * 300,
]
BYTES = [b"", b"\0" * 4, b"\xff" * 16, b"\0\0\x80\x3f" * 3, b"wrap", b"edge", b"reflect", b"SAME_UPPER", b"tanh"]
LARGEST_OUTPUT = 1 << 16


def seeds() -> list[ModelProto]:
    """The probes and some random graphs, those with our operators also with their bodies."""
    found = [probe.build() for probe in PROBES] + [grow(number, 6) for number in range(20)]
    for proto in list(found):
        if any(entry.domain == "lipdeploy" for entry in proto.opset_import):
            copy = ModelProto.FromString(proto.SerializeToString())
            try:
                attach_functions(copy, {TensorProto.FLOAT})
            except ValueError:
                continue  # a probe whose operator is not one
            found.append(copy)
    return found


SEEDS = seeds()


def messages(message: Message, found: list[Message]) -> list[Message]:
    """A message and all inside it."""
    found.append(message)
    for entry, value in message.ListFields():
        if entry.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if entry.is_repeated else [value]:
                messages(part, found)
    return found


def number(entry: FieldDescriptor, names: list[str], rng: random.Random) -> Any:
    """A value for one field, of its type."""
    if entry.type == FieldDescriptor.TYPE_STRING:
        return rng.choice([*names, *TEXTS])
    if entry.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice(BYTES)
    if entry.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(REALS)
    if entry.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice(list(entry.enum_type.values)).number
    value = rng.choice(INTEGERS)
    if entry.type == FieldDescriptor.TYPE_INT32:
        return max(-(2**31), min(2**31 - 1, value))
    return abs(value) % 2**63 if entry.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_UINT32) else value


def mutate(model: ModelProto, rng: random.Random) -> None:
    """Change one field somewhere."""
    every = messages(model, [])
    target = rng.choice(every)
    entries = [entry for entry, _ in target.ListFields()] if rng.random() < 0.8 else list(target.DESCRIPTOR.fields)
    if not entries:
        return
    entry = rng.choice(entries)
    names = sorted({name for node in model.graph.node for name in (*node.input, *node.output)})
    value: Any = getattr(target, entry.name)
    if entry.type == FieldDescriptor.TYPE_MESSAGE:
        alike = [m for m in every if m.DESCRIPTOR is entry.message_type]
        mutate_message(target, entry, value, alike, rng)
    elif entry.is_repeated:
        place = rng.randrange(len(value)) if len(value) else None
        if place is None or rng.random() < 0.3:
            value.append(number(entry, names, rng))
        elif rng.random() < 0.6:
            value[place] = number(entry, names, rng)
        else:
            del value[place]
    else:
        setattr(target, entry.name, number(entry, names, rng))


def mutate_message(target: Any, entry: FieldDescriptor, value: Any, alike: list[Message], rng: random.Random) -> None:
    """Remove, repeat or replace a message; copies go by bytes, as a message must not be copied into itself."""
    chosen = rng.choice(alike).SerializeToString() if alike else b""
    if not entry.is_repeated:
        target.ClearField(entry.name)
        if rng.random() < 0.7:
            getattr(target, entry.name).ParseFromString(chosen)
    elif not len(value) or rng.random() < 0.2:
        value.add().ParseFromString(chosen)
    elif rng.random() < 0.4:
        del value[rng.randrange(len(value))]
    else:
        other = value[rng.randrange(len(value))].SerializeToString()
        value[rng.randrange(len(value))].ParseFromString(other)


@settings(max_examples=50, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63), st.sampled_from(["l2", "linf", "l1", "l2-linf"]))
def test_a_mutated_model_is_judged_or_refused(seed: int, norm: str) -> None:
    """Ten mutants each: no exception but ``InputError``, in any norm, and the digest takes what was read."""
    rng = random.Random(seed)
    for _ in range(10):
        model = ModelProto.FromString(rng.choice(SEEDS).SerializeToString())
        for _ in range(rng.choice([1, 1, 2, 3])):
            mutate(model, rng)
        data = model.SerializeToString()
        try:
            verdict = verify(data, norm=norm)
        except InputError:
            continue
        assert (verdict.status == "refused") == (verdict.lipschitz_bound is None)
        semantic_sha256(model)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_what_a_mutated_model_means(first: int) -> None:
    """A mutant that is verified runs as the verifier thinks: the same output shape, and no pair beats the bound."""
    rng, compared = random.Random(first), 0
    for _ in range(150):
        model = ModelProto.FromString(rng.choice(SEEDS).SerializeToString())
        mutate(model, rng)
        if len(model.graph.input) == 1 and small(model):
            compared += same_meaning(model.SerializeToString())
    assert compared > 20


def small(model: ModelProto) -> bool:
    """Whether running the model is a matter of milliseconds, by what it says about its input and its integers."""
    kind = model.graph.input[0].type.tensor_type
    sizes = [dim.dim_value for dim in kind.shape.dim[1:]]
    if kind.elem_type != TensorProto.FLOAT or 0 in sizes or np.prod(sizes, dtype=object) > 4096:
        return False
    listed = [i for node in model.graph.node for a in node.attribute for i in (a.i, *a.ints)]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            try:
                listed += onnx.numpy_helper.to_array(tensor).reshape(-1).tolist()
            except (ValueError, TypeError):
                return False
    return all(abs(n) < LARGEST_OUTPUT for n in listed)
