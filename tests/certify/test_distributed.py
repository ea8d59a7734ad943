"""What a Ray actor does, without Ray: the same answers from shipped bytes, and every difference is an error."""

from __future__ import annotations

import base64
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from lipdeploy.certify.distributed import Certifier, Order, _order, _runs
from lipdeploy.certify.run import Settings, certify, local, prepare
from lipdeploy.errors import InputError, IntegrityError, LipdeployError, Refusal, Refused
from tests.certify.conftest import samples, write_npz

X, Y = samples(90)


@pytest.fixture
def order(dense: Path, tmp_path: Path) -> Order:
    return _order(prepare(str(dense), str(write_npz(tmp_path / "d.npz", X, Y)), Settings()))


def ranges(*ends: tuple[int, int]) -> dict[str, Any]:
    return {"start": np.array([start for start, _ in ends]), "stop": np.array([stop for _, stop in ends])}


def problem(lines: dict[str, Any]) -> LipdeployError:
    assert lines["row"].tolist() == [-1]
    error: LipdeployError = pickle.loads(base64.b64decode(lines["problem"][0]))
    return error


def test_an_actor_answers_as_this_process_does(order: Order, dense: Path, tmp_path: Path) -> None:
    results = certify(prepare(str(dense), str(tmp_path / "d.npz"), Settings()), local)
    lines = Certifier(pickle.loads(pickle.dumps(order)))(ranges((10, 30), (50, 90)))
    assert lines["row"].tolist() == [*range(10, 30), *range(50, 90)]
    for name in ("label", "radius", "program"):
        np.testing.assert_array_equal(lines[name], getattr(results, name)[lines["row"]])
    assert set(lines["problem"].tolist()) == {""}
    assert [(part.start, len(part.label)) for part in _runs(lines)] == [(10, 20), (50, 40)]


def test_a_bad_value_travels_as_the_error_it_is(order: Order, tmp_path: Path) -> None:
    x = X.copy()
    x[70, 0] = np.inf
    write_npz(tmp_path / "d.npz", x, Y)
    changed = Certifier(order)
    assert isinstance(problem(changed(ranges((0, 10)))), IntegrityError)  # other data than the command saw
    seen = prepare(str(tmp_path / "dense.onnx"), order.data, order.settings)
    actor = Certifier(dataclasses.replace(order, data_sha256=seen.data_sha256))
    found = problem(actor(ranges((60, 80))))
    assert isinstance(found, InputError) and "inf in row 70" in found.message and found.hint


@pytest.mark.parametrize(
    ("field", "phrase"),
    [("model_sha256", "another model"), ("certificate_sha256", "other numbers"), ("data_sha256", "other data")],
)
def test_another_model_certificate_or_data_set_answers_nothing(order: Order, field: str, phrase: str) -> None:
    lines = Certifier(dataclasses.replace(order, **{field: "0" * 64}))(ranges((0, 10)))
    found = problem(lines)
    assert isinstance(found, IntegrityError) and phrase in found.message


def test_changed_bytes_are_another_model(order: Order) -> None:
    content = order.files["model.onnx"].replace(np.float32(0.75).tobytes(), np.float32(0.5).tobytes())
    assert content != order.files["model.onnx"]
    found = problem(Certifier(dataclasses.replace(order, files={"model.onnx": content}))(ranges((0, 10))))
    assert isinstance(found, IntegrityError)


def test_a_refusal_survives_the_way(order: Order) -> None:
    refused = Refused([Refusal("LIP001", "node", "Op", "no rule"), Refusal("LIP003", "w", "", "NaN")])
    again = pickle.loads(pickle.dumps(refused))
    assert (str(again), again.refusals, again.code, again.hint) == (
        str(refused), refused.refusals, refused.code, refused.hint,
    )  # fmt: skip
