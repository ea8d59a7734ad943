"""A network with several outputs: the certificate is about the one that is named, and the file keeps them all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import lipdeploy as lip
from lipdeploy.export.parity import compare


class TwoHeads(nn.Module):
    """Scores of three classes, and a value of slope 5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.value = nn.Linear(4, 3), nn.Linear(4, 1)
        with torch.no_grad():
            self.value.weight.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0]]))

    def forward(self, x):
        return self.scores(x), self.value(x)


@pytest.fixture
def exported(tmp_path):
    path = tmp_path / "net.onnx"
    return lip.export(TwoHeads(), torch.zeros(2, 4), path, output_name="output_0", class_names=("a", "b", "c"))


def test_the_certificate_is_about_the_named_one(exported):
    truth = float(np.linalg.norm(TwoHeads().scores.weight.detach().double().numpy(), 2))
    assert truth <= exported.verdict.lipschitz_bound.value <= truth * (1 + 1e-8)
    assert exported.parity.argmax_agreement == 1.0
    certificate = json.loads(exported.certificate_path.read_text("utf-8"))
    assert certificate["statement"]["output"] == "output_0"
    assert lip.verify(exported.path, output_name="output_1").lipschitz_bound.value == pytest.approx(5.0, rel=1e-8)


def test_a_session_answers_about_it_and_the_file_keeps_both(exported):
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    session = lip.CertifiedSession(exported.path, output_name="output_0")
    scores, value = (output.detach().numpy() for output in TwoHeads()(torch.from_numpy(x)))
    np.testing.assert_array_equal(session.predict(x).label, scores.argmax(axis=1))
    found = session.run(None, {"input": x})
    np.testing.assert_allclose(found[0], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], value, rtol=1e-5, atol=1e-6)
    with pytest.raises(lip.Refused, match="LIP016"):
        lip.CertifiedSession(exported.path)


def test_what_cannot_be_meant(tmp_path):
    path = tmp_path / "net.onnx"
    for options, code, message in (
        ({}, lip.Refused, "LIP016"),
        ({"output_name": "scores"}, lip.InputError, "no output 'scores'"),
        ({"output_name": "output_0", "normalize": True}, lip.InputError, "normalize scales one output"),
        ({"output_name": "output_1", "class_names": ("a", "b", "c")}, lip.InputError, "3 class names"),
    ):
        with pytest.raises(code, match=message):
            lip.export(TwoHeads(), torch.zeros(2, 4), path, **options)
        assert not list(tmp_path.iterdir())


def test_classes_are_compared_where_they_are_judged():
    values, scores = np.zeros((2, 1), np.float32), np.eye(2, dtype=np.float32)
    parity = compare([values, scores], [values, scores[::-1]], judged=1)
    assert parity.argmax_agreement == 0.0
    assert parity.changed == 2
