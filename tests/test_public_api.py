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
