"""``lipdeploy package`` and ``EmbeddedModel``. The hosts themselves judge the folders in tests/conformance."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from lipdeploy import CertifiedSession
from lipdeploy.cli.main import main
from lipdeploy.errors import InputError, LimitExceeded, Refused
from lipdeploy.serve.embedded import EmbeddedModel
from lipdeploy.serve.problems import RequestProblem

CLASSIFIER = """
<ir_version: 9, opset_import: ["": 20]>
classifier (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0.75, 0.0, 0.0, -0.5}> { y = MatMul (x, w) }
"""
IMAGE = """
<ir_version: 9, opset_import: ["": 20]>
image (float[N, 2, 2] x) => (float[N, 2, 2] y) { y = Relu (x) }
"""
FIXED = CLASSIFIER.replace("float[N, 2]", "float[4, 2]")
UNKNOWN = """
<ir_version: 9, opset_import: ["": 20]>
unknown (float[N, 2] x) => (float[N, 2] y) { y = Det3 (x) }
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str = CLASSIFIER, name: str = "net.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
        return path

    return write


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_triton_repository_with_certificates(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    assert main(["package", "triton", str(write()), "-o", str(out), "--epsilon", "0.5", "--max-lipschitz", "1"]) == 0
    names = {"config.pbtxt", "README.md", "1/model.py", "1/model.onnx", "1/model.cert.json"}
    assert files(out) == {f"net/{name}" for name in names}
    config = (out / "net/config.pbtxt").read_text()
    assert 'backend: "python"' in config and "max_batch_size: 0" in config
    assert 'key: "epsilon" value { string_value: "0.5" }' in config
    assert 'name: "label" data_type: TYPE_INT64 dims: [ -1 ]' in config
    compile((out / "net/1/model.py").read_text(), "model.py", "exec")
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_triton_may_merge_requests(write: Write, tmp_path: Path) -> None:
    assert main(["package", "triton", str(write()), "-o", str(tmp_path / "r"), "--batching"]) == 0
    config = (tmp_path / "r/net/config.pbtxt").read_text()
    assert "max_batch_size: 64" in config and "dynamic_batching { }" in config
    assert 'name: "label" data_type: TYPE_INT64 dims: [ 1 ]' in config
    assert 'name: "x" data_type: TYPE_FP32 dims: [ 2 ]' in config


def test_a_triton_repository_without(write: Write, tmp_path: Path) -> None:
    assert main(["package", "triton", str(write()), "-o", str(tmp_path / "r"), "--backend", "onnxruntime"]) == 0
    config = (tmp_path / "r/net/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert "op_library_filename" not in config  # the model has none of our operators
    assert "No answer carries a guarantee" in (tmp_path / "r/net/README.md").read_text()


def test_a_fixed_batch_inside_triton(write: Write, tmp_path: Path) -> None:
    """The Python backend fills batches up; the ONNX backend cannot."""
    words = ["package", "triton", str(write(FIXED)), "-o"]
    assert main([*words, str(tmp_path / "python")]) == 0
    assert 'name: "x" data_type: TYPE_FP32 dims: [ -1, 2 ]' in (tmp_path / "python/net/config.pbtxt").read_text()
    assert main([*words, str(tmp_path / "onnx"), "--backend", "onnxruntime"]) == 0
    assert 'name: "x" data_type: TYPE_FP32 dims: [ 4, 2 ]' in (tmp_path / "onnx/net/config.pbtxt").read_text()
    assert main([*words, str(tmp_path / "merged"), "--backend", "onnxruntime", "--batching"]) == 2


@pytest.mark.parametrize("limit", [0.1, 0.7500000000000001, 1 / 3, 2.0**60, 123456.7])
def test_numbers_reach_the_host_unchanged(limit: float, write: Write) -> None:
    """Text is rounded down there for a limit and up for a radius: what is written must survive that."""
    from lipdeploy.serve.packages import Contents, contents
    from lipdeploy.serve.settings import read_setting

    proven = contents(write())
    given = Contents("net", proven.source, proven.verdict, {"max_lipschitz": limit, "epsilon": limit})
    assert {name: read_setting(name, text) for name, text in given.settings_as_text.items()} == given.settings


def test_triton_takes_no_setting_that_we_do_not_know(write: Write, tmp_path: Path) -> None:
    """A misspelt limit is no limit."""
    from lipdeploy.serve.triton import TritonPythonModel

    assert main(["package", "triton", str(write()), "-o", str(tmp_path)]) == 2  # not empty
    assert main(["package", "triton", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "r")]) == 0
    about = {"model_repository": str(tmp_path / "r/net"), "model_version": "1", "model_name": "net"}

    def load(**parameters: str) -> None:
        given = {name: {"string_value": value} for name, value in parameters.items()}
        TritonPythonModel().initialize({**about, "model_config": json.dumps({"parameters": given})})

    load(max_lipschitz="1", EXECUTION_ENV_PATH="/somewhere")
    with pytest.raises(LimitExceeded):
        load(max_lipschitz="0.5")
    with pytest.raises(InputError, match="max_lipshitz"):
        load(max_lipshitz="0.5")


def test_an_mlserver_folder(write: Write, tmp_path: Path) -> None:
    assert main(["package", "mlserver", str(write()), "-o", str(tmp_path / "m"), "--name", "digits"]) == 0
    settings = json.loads((tmp_path / "m/model-settings.json").read_text())
    assert settings["name"] == "digits"
    assert settings["parameters"] == {"uri": "./model.onnx", "version": "1", "extra": {"norm": "l2"}}
    assert "model.cert.json" in files(tmp_path / "m")


def test_kserve_manifests(write: Write, tmp_path: Path) -> None:
    words = ["--storage-uri", "s3://bucket/net", "--image", "registry/lipdeploy:1", "--certify", "adaptive"]
    assert main(["package", "kserve", str(write(name="My_Net.onnx")), "-o", str(tmp_path / "k"), *words]) == 0
    runtime = yaml.safe_load((tmp_path / "k/serving-runtime.yaml").read_text())
    container = runtime["spec"]["containers"][0]
    assert container["image"] == "registry/lipdeploy:1"
    assert "--certify=adaptive" in container["args"] and container["args"][-1] == "/mnt/models/model.onnx"
    service = yaml.safe_load((tmp_path / "k/inference-service.yaml").read_text())
    assert service["metadata"]["name"] == "my-net"
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://bucket/net"
    assert {"model/model.onnx", "model/model.cert.json"} <= files(tmp_path / "k")


def test_the_packaged_bytes_are_the_verified_ones(write: Write, tmp_path: Path) -> None:
    model = write()
    assert main(["package", "mlserver", str(model), "-o", str(tmp_path / "m")]) == 0
    assert (tmp_path / "m/model.onnx").read_bytes() == model.read_bytes()
    assert main(["verify", str(tmp_path / "m/model.onnx")]) == 0


@pytest.mark.parametrize("kind", ["triton", "mlserver", "kserve"])
def test_nothing_is_packaged_that_is_not_proven(kind: str, write: Write, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert main(["package", kind, str(write(UNKNOWN)), "-o", out]) == 3
    assert main(["package", kind, str(write()), "-o", out, "--max-lipschitz", "0.5"]) == 1
    assert main(["package", kind, str(tmp_path / "nowhere.onnx"), "-o", out]) == 2
    assert not Path(out).exists()


def test_a_folder_with_something_in_it_is_left_alone(write: Write, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert main(["package", "mlserver", str(write()), "-o", str(tmp_path / "full")]) == 2
    assert files(tmp_path / "full") == {"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "net.onnx"]  # no temporary folder is left


def test_names_that_no_url_takes(write: Write, tmp_path: Path) -> None:
    assert main(["package", "mlserver", str(write()), "-o", str(tmp_path / "m"), "--name", "../up"]) == 2


def test_strings_of_the_text_format() -> None:
    from google.protobuf import text_format
    from onnx import StringStringEntryProto

    from lipdeploy.serve.packages.triton import _quoted

    for text in ("plain", 'quo"te', "back\\slash", "new\nline", "ümlaut", "\x00\x7f", "\\u0041"):
        assert text_format.Parse(f"key: {_quoted(text)}", StringStringEntryProto()).key == text


# The model inside a host.


def test_an_embedded_model_answers_as_the_session(write: Write) -> None:
    path = write()
    model, session = EmbeddedModel(path, "net"), CertifiedSession(str(path))
    x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    answer, prediction = model.answer({"x": x}, {"lipdeploy_epsilon": "0.5"}), session.predict(x, epsilon=0.5)
    assert list(answer) == ["label", "radius", "certified", "abstain"]
    np.testing.assert_array_equal(answer["label"], prediction.label)
    np.testing.assert_array_equal(answer["certified"], prediction.certified)
    np.testing.assert_array_equal(answer["abstain"], ~prediction.certified)
    assert answer["radius"].dtype == np.float32
    assert (answer["radius"].astype(np.float64) <= prediction.radius).all()
    np.testing.assert_allclose(answer["radius"], prediction.radius, rtol=1e-6)
    assert list(model.answer({"x": x}, {}, ["logits", "margin"])) == ["logits", "margin"]


def test_settings_may_be_text(write: Write) -> None:
    model = EmbeddedModel(write(), "net", epsilon="0.25", max_lipschitz="1", certify="adaptive", threads="1")
    x = np.array([[0.3, 0.0], [9.0, 0.0]], np.float32)
    assert model.answer({"x": x}, {})["certified"].tolist() == [False, True]


def test_other_outputs_and_fixed_batches(write: Write) -> None:
    x = np.array([[[1.0, -1.0], [0.5, 2.0]]], np.float32)
    image = EmbeddedModel(write(IMAGE), "image").answer({"x": x}, {})
    assert list(image) == ["y"]
    np.testing.assert_array_equal(image["y"], np.maximum(x, 0.0))
    fixed, session = EmbeddedModel(write(FIXED), "fixed"), CertifiedSession(str(write(name="open.onnx")))
    for rows in (1, 4, 5, 9):
        x = np.random.default_rng(rows).standard_normal((rows, 2)).astype(np.float32)
        answer = fixed.answer({"x": x}, {}, ["label", "logits", "certified"])
        np.testing.assert_array_equal(answer["label"], session.predict(x).label)
        assert answer["logits"].shape == (rows, 2)


def test_an_embedded_model_keeps_to_its_largest_batch(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = EmbeddedModel(write(), "net", max_batch_rows="4"), []
    run = model._model.program.run
    monkeypatch.setattr(
        model._model.program, "run", lambda feeds, *given: (seen.append(len(feeds["x"])), run(feeds, *given))[1]
    )
    assert len(model.answer({"x": np.ones((9, 2), np.float32)}, {})["label"]) == 9
    assert seen == [4, 4, 1]


def test_what_an_embedded_model_refuses(write: Write) -> None:
    with pytest.raises(Refused):
        EmbeddedModel(write(UNKNOWN), "unknown")
    path = write()
    with pytest.raises(LimitExceeded):
        EmbeddedModel(path, "net", max_lipschitz=0.5)
    for settings in ({"epsilon": "much"}, {"epsilon": -1.0}, {"ports": 1}, {"certify": "maybe"}):
        with pytest.raises(InputError):
            EmbeddedModel(path, "net", **settings)
    model = EmbeddedModel(path, "net")
    x = np.ones((1, 2), np.float32)
    for arrays, names in (({"z": x}, None), ({"x": x * np.nan}, None), ({"x": x[:0]}, None), ({"x": x}, ["zz"])):
        with pytest.raises(InputError):
            model.answer(arrays, {}, names)
    for parameters in (
        {"lipdeploy_epsilon": -1},
        {"lipdeploy_epsylon": 1},
        {"Lipdeploy_epsilon": 1},
        {"lipdeploy-epsilon": 1},
        {"lipdeploy_require_certificate": "0" * 64},
    ):
        with pytest.raises(RequestProblem):
            model.answer({"x": x}, parameters)


def test_settings_in_text_are_read_exactly(write: Write) -> None:
    """What is asked for is rounded up, and a limit down, as on the command line."""
    from fractions import Fraction

    model = EmbeddedModel(write(), "net", epsilon="0.3", max_lipschitz="0.8")
    assert model._epsilon is not None
    assert Fraction(model._epsilon) > Fraction(3, 10)
    assert EmbeddedModel(write(), "net", epsilon="8/255")._epsilon == pytest.approx(8 / 255)
    for setting in ({"epsilon": "much"}, {"max_lipschitz": "none"}):
        with pytest.raises(InputError, match=r"much|none"):
            EmbeddedModel(write(), "net", **setting)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("max_body_bytes", "7", 7), ("max_body_bytes", 7.0, 7), ("max_body_bytes", 1.9, None), ("threads", True, None),
        ("threads", None, None), ("epsilon", True, None), ("access_log", "True", True), ("access_log", "maybe", None),
        ("providers", "a,b", ("a", "b")), ("drain_seconds", "2.5", 2.5), ("drain_seconds", "soon", None),
        ("max_lipshitz", "1", None), ("norm", "linf", "linf"),
    ],
)  # fmt: skip
def test_settings_from_a_host(name: str, given: object, read: object) -> None:
    from lipdeploy.serve.settings import read_setting

    if read is None and given is not None:
        with pytest.raises(InputError, match=name):
            read_setting(name, given)
    else:
        assert read_setting(name, given) == read


@pytest.mark.parametrize("setting", [{"norm": "l7"}, {"epsilon": float("nan")}, {"max_lipschitz": float("nan")}])
def test_settings_that_make_no_sense_fail_before_a_server_starts(setting: dict[str, object]) -> None:
    from lipdeploy.serve.settings import Settings

    with pytest.raises(InputError):
        Settings(models=(), **setting)  # type: ignore[arg-type]
