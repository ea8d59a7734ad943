"""``import lipdeploy``: every public name, loaded on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lipdeploy as lip


def test_every_public_name_exists():
    for name in lip.__all__:
        assert getattr(lip, name) is not None, name
    assert set(lip.__all__) <= set(dir(lip))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'certify_all'"):
        _ = lip.certify_all


@pytest.mark.parametrize(
    "order",
    [
        "import lipdeploy as lip; lip.verify; from lipdeploy.verify import verify",
        "from lipdeploy.verify import verify; import lipdeploy as lip",
        "import lipdeploy.verify.bound; from lipdeploy.verify import verify; import lipdeploy as lip",
    ],
)
def test_verify_is_a_package_and_a_function_in_any_order_of_imports(order):
    code = f"""{order}
try:
    lip.verify("no/such/model.onnx")
except lip.InputError as error:
    assert error.exit_code == 2
import lipdeploy.verify.bound
assert lip.verify.verify is verify and lip.verify.bound.Bound is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_is_light():
    code = "import sys, lipdeploy; print({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules) or 'none')"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "none"


def test_what_cannot_be_a_model_or_a_limit_is_named() -> None:
    import onnx

    with pytest.raises(lip.InputError, match="from a ModelProto") as problem:
        lip.verify(onnx.ModelProto())
    assert "SerializeToString" in problem.value.hint
    for limit in ("8", True, float("nan"), -1.0):
        with pytest.raises(lip.InputError, match="the limit must be a positive number"):
            lip.verify(b"", max_lipschitz=limit)


def test_what_is_printed_of_a_verdict_and_a_session_fits_a_line() -> None:
    pytest.importorskip("onnxruntime")
    import onnx

    text = '<ir_version: 9, opset_import: ["": 20]> g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }'
    data = onnx.parser.parse_model(text).SerializeToString()
    verdict, session = lip.verify(data), lip.CertifiedSession(data)
    assert repr(verdict) == "Verdict('<bytes>', 'verified', norm='l2', lipschitz_bound=1)"
    assert repr(session) == (
        "CertifiedSession('<bytes>', norm='l2', lipschitz_bound=1, certify='f64', guarantee='deployed')"
    )
    refused = lip.verify(onnx.parser.parse_model(text.replace("Relu", "Det3")).SerializeToString())
    assert repr(refused) == "Verdict('<bytes>', 'refused', norm='l2', lipschitz_bound=None, refusals=['LIP001'])"
