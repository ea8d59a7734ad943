"""Providers are what was asked for, or an error."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime
import pytest

from lipdeploy.errors import InputError, IntegrityError
from lipdeploy.runtime.providers import CPU, CUDA, check_obtained, choose


class Obtained:
    """Stands in for a session that reports these providers."""

    def __init__(self, **options):
        self.options = options

    def get_providers(self):
        return list(self.options)

    def get_provider_options(self):
        return self.options


@pytest.fixture
def with_cuda(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])


def test_the_cpu_is_the_default():
    assert choose(None) == ((CPU, {}),)


@pytest.mark.parametrize("name", ["TensorrtExecutionProvider", "OpenVINOExecutionProvider", "cpu"])
def test_providers_with_unknown_rounding_are_refused(name):
    with pytest.raises(InputError, match=f"'{name}' cannot carry a certificate"):
        choose([name])


def test_a_bare_string_is_a_mistake():
    with pytest.raises(InputError, match="providers must be a list"):
        choose(CPU)


def test_cuda_is_pinned(with_cuda):
    ((name, options),) = choose([(CUDA, {"device_id": 1})])
    assert name == CUDA
    assert options == {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


@pytest.mark.parametrize("option", [{"use_tf32": 1}, {"cudnn_conv_algo_search": "EXHAUSTIVE"}])
def test_options_that_undo_the_pinning_are_refused(with_cuda, option):
    with pytest.raises(InputError, match="is not covered by the error rule"):
        choose([(CUDA, option)])


def test_a_provider_that_is_not_there_is_an_integrity_error(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(IntegrityError, match=f"{CUDA} was asked for"):
        choose([CUDA])


def test_falling_back_to_another_provider_is_an_integrity_error(with_cuda):
    with pytest.raises(IntegrityError, match=f"asked for {CUDA}, obtained {CPU}"):
        check_obtained(Obtained(**{CPU: {}}), choose([CUDA]))


def test_an_option_that_did_not_arrive_is_an_integrity_error(with_cuda):
    wanted = choose([CUDA])
    check_obtained(Obtained(**{CUDA: dict(wanted[0][1]), CPU: {}}), wanted)
    changed = {**wanted[0][1], "use_tf32": "1"}
    with pytest.raises(IntegrityError, match="asked for use_tf32 = 0, obtained 1"):
        check_obtained(Obtained(**{CUDA: changed, CPU: {}}), wanted)


def test_a_missing_cuda_library_is_named(with_cuda, monkeypatch):
    said = b"OSError: libcublasLt.so.13: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, b"", said))
    with pytest.raises(IntegrityError, match=rf"obtained {CPU}: libcublasLt\.so\.13 is not found"):
        check_obtained(Obtained(**{CPU: {}}), choose([CUDA]))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, b"", b"other"))
    with pytest.raises(IntegrityError, match=rf"obtained {CPU}$"):
        check_obtained(Obtained(**{CPU: {}}), choose([CUDA]))


def test_onnxruntime_prints_nothing_about_a_provider_that_does_not_load(tmp_path):
    script = """
from onnx import parser
from lipdeploy.errors import IntegrityError
from lipdeploy.runtime.engine import Engine
from lipdeploy.runtime.providers import CUDA
text = '<ir_version: 9, opset_import: ["": 20]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }'
try:
    Engine(((CUDA, {}),), 1, None).open(parser.parse_model(text), "trial")
except IntegrityError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    if CUDA in onnxruntime.get_available_providers() and done.stdout:
        assert f"obtained {CPU}" in done.stdout
