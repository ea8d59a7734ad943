"""Coverage-guided fuzzing of the trusted reader: ``python tools/fuzz/verify.py CORPUS [libFuzzer options]``.

Bytes → ``read_source`` → ``verify`` in several norms, the search for parts that multipliers may tighten, and the
certificate's digest. Whatever is not a verdict or a ``LipdeployError`` is a crash, and libFuzzer keeps the file. Needs
``atheris`` (``make fuzz`` makes an environment for it). An empty CORPUS is filled first: with the zoo's networks and
the soundness suite's graphs.

Half of the mutations are libFuzzer's own on the bytes, half are made on the parsed graph (a node's operator, names,
attributes, a shape, a stored number), because protobuf forgives little.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lipdeploy.verify", "lipdeploy.ops"]):
    from lipdeploy.errors import LipdeployError
    from lipdeploy.verify import Method, verify
    from lipdeploy.verify.digest import semantic_sha256
    from lipdeploy.verify.source import read_source

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 1 << 16  # bytes: what is larger is only slower
SMALL = 1 << 12  # bytes of a model whose parts are looked for
NORMS = ("l2", "linf", "l2-linf")
CLAIM = [np.ones(4)]  # multipliers that fit hardly anything
NUMBERS = (0, 1, -1, 2, 3, -2, 7, 64, 2**31 - 1, -(2**31), 2**62, -(2**63))
REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))


def one(data: bytes) -> None:
    """A verdict, or an error that says so."""
    for norm in NORMS:
        method: Method = "best" if norm == "l2" and len(data) <= SMALL else "product"
        try:
            verdict = verify(data, norm=norm, max_lipschitz=2.0, method=method, hints=CLAIM)
        except LipdeployError:
            continue
        bound = verdict.lipschitz_bound
        if (verdict.status in ("verified", "exceeded")) != (bound is not None):
            raise AssertionError(f"{verdict.status} with the bound {bound}")
    try:
        semantic_sha256(read_source(data).proto)
    except LipdeployError:
        return


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """One change of the parsed graph, or libFuzzer's own of the bytes."""
    chance = random.Random(seed)
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return atheris.Mutate(data, largest)
    if chance.random() < 0.5 or not proto.graph.node:
        return atheris.Mutate(data, largest)
    try:
        chance.choice(CHANGES)(proto, chance)
    except (ValueError, TypeError, IndexError, OverflowError):
        return atheris.Mutate(data, largest)
    changed = proto.SerializeToString()
    return changed if len(changed) <= largest else atheris.Mutate(data, largest)


def _node(proto: ModelProto, chance: random.Random) -> NodeProto:
    return chance.choice(list(proto.graph.node))


def _names(proto: ModelProto) -> list[str]:
    stored = [tensor.name for tensor in proto.graph.initializer]
    return ["", "x", *stored, *(name for node in proto.graph.node for name in node.output)]


def _operator(proto: ModelProto, chance: random.Random) -> None:
    _node(proto, chance).op_type = chance.choice(OPERATORS)


def _wire(proto: ModelProto, chance: random.Random) -> None:
    node = _node(proto, chance)
    names = node.input if chance.random() < 0.7 else node.output
    if names and chance.random() < 0.7:
        names[chance.randrange(len(names))] = chance.choice(_names(proto))
    else:
        names.append(chance.choice(_names(proto)))


def _attribute(proto: ModelProto, chance: random.Random) -> None:
    node = _node(proto, chance)
    if not node.attribute or chance.random() < 0.2:
        made = AttributeProto(name=chance.choice(ATTRIBUTES), type=AttributeProto.INT, i=chance.choice(NUMBERS))
        node.attribute.append(made)
        return
    attribute = chance.choice(list(node.attribute))
    if attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = chance.choice(REALS)
    else:
        attribute.i = chance.choice(NUMBERS)


def _size(proto: ModelProto, chance: random.Random) -> None:
    shaped = [*proto.graph.input, *proto.graph.output]
    dims = chance.choice(shaped).type.tensor_type.shape.dim
    if dims and chance.random() < 0.8:
        dims[chance.randrange(len(dims))].dim_value = chance.choice(NUMBERS)
    else:
        dims.add().dim_param = chance.choice(("N", "H", "W"))


def _stored(proto: ModelProto, chance: random.Random) -> None:
    tensor = chance.choice(list(proto.graph.initializer))
    kind = chance.randrange(3)
    if kind == 0 and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(NUMBERS)
    elif kind == 1:
        tensor.data_type = chance.randrange(24)
    else:
        raw = bytearray(tensor.raw_data)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        tensor.raw_data = bytes(raw)


def _order(proto: ModelProto, chance: random.Random) -> None:
    nodes = list(proto.graph.node)
    if chance.random() < 0.5:
        proto.graph.node.append(chance.choice(nodes))
    else:
        del proto.graph.node[chance.randrange(len(nodes))]


CHANGES: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    _operator, _wire, _wire, _attribute, _attribute, _size, _stored, _stored, _order,
)  # fmt: skip
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()} | {"GroupSort", "LinearSpline"})
ATTRIBUTES = sorted({name for schema in onnx.defs.get_all_schemas() for name in schema.attributes})


def seeds() -> list[bytes]:
    """Valid files: the zoo's small networks, and the soundness suite's graphs, which know nearly every operator."""
    sys.path.insert(0, str(ROOT))
    from tools.soundness.run import PROBES

    zoo = [path.read_bytes() for path in sorted((ROOT / "zoo").glob("*/model.onnx"))]
    probes = [probe.build().SerializeToString() for probe in PROBES]
    return [data for data in (*zoo, *probes) if len(data) <= LARGEST]


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for index, data in enumerate(seeds()):
            (corpus / f"seed{index:03d}").write_bytes(data)
    options = [sys.argv[0], f"-max_len={LARGEST}", "-rss_limit_mb=4096", "-timeout=120", *sys.argv[2:], str(corpus)]
    atheris.Setup(options, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
