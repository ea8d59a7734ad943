"""How much of a large model a session keeps: one copy of the weights per program, and nothing of its start."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from lipdeploy.errors import IntegrityError
from lipdeploy.runtime import engine, find_library
from lipdeploy.runtime.engine import Engine
from lipdeploy.runtime.providers import choose

SIDE = 1448  # two square layers: 16 MiB of float32
WORKSPACE = 16  # MiB that BLAS and ONNX Runtime touch once, whatever the network
MEASURE = """
import gc, sys
from lipdeploy.runtime import CertifiedSession
import numpy as np

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

small, large, mode = sys.argv[1:]
CertifiedSession(small, certify=mode, threads=1).predict(np.ones((1, 8), np.float32))
before = resident()
session = CertifiedSession(large, certify=mode, threads=1)
print(resident() - before)
session.predict(np.ones((1, {side}), np.float32))
"""


def squares(parse, side):
    random, pieces = np.random.default_rng(3), 2
    weights = {
        f"w{i}": (random.standard_normal((side, side)) / side**0.5 / 2).astype(np.float32) for i in range(pieces)
    }
    head = (random.standard_normal((3, side)) / side**0.5).astype(np.float32)
    text = f"""g (float[N,{side}] x) => (float[N,3] y) {{
        a = Gemm<transB=1>(x, w0) b = Relu(a) c = Gemm<transB=1>(b, w1) d = Relu(c) y = Gemm<transB=1>(d, head) }}"""
    return parse(text, **weights, head=head)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("mode", "copies"), [("f32", 1), ("f64", 2), ("adaptive", 2), ("network", 2)])
def test_weights_are_kept_once_per_program(parse, tmp_path, mode, copies):
    if mode != "f32" and find_library() is None:
        copies += 1  # ONNX Runtime's own products take float64 weights
    for name, side in (("small", 8), ("large", SIDE)):
        onnx.save(squares(parse, side), tmp_path / f"{name}.onnx")
    files = [str(tmp_path / "small.onnx"), str(tmp_path / "large.onnx")]
    command = [sys.executable, "-c", MEASURE.replace("{side}", str(SIDE)), *files, mode]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, weights = float(run.stdout), 4 * 2 * SIDE**2 / 2**20
    assert kept <= 1.15 * copies * weights + WORKSPACE, f"{kept:.0f} MiB for {weights:.0f} MiB of weights"


def test_the_second_opening_must_be_the_first(parse, monkeypatch):
    """A session that gives other bits than the one whose graph was read back is not used."""
    model, other = squares(parse, 512), squares(parse, 512)
    changed = onnx.numpy_helper.to_array(other.graph.initializer[0]).copy()
    changed[0, 0] += np.float32(1.0)
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(changed, "w0"))
    assert model.ByteSize() > engine.HEAVY
    opener = Engine(choose(None), 1, None)
    opener.open(model, "the program")
    create = Engine._create

    def swapped(self, level, data, dump, what):
        return create(self, level, data if dump else other.SerializeToString(), dump, what)

    monkeypatch.setattr(Engine, "_create", swapped)
    with pytest.raises(IntegrityError, match="different bits"):
        opener.open(model, "the program")
