"""``lipdeploy predict``: labels and radii against hand-computed numbers, and every way to hand it something wrong."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from lipdeploy.cli import schema
from tests.cli.conftest import BROKEN, Cli, write_model

pytest.importorskip("onnxruntime")

ROWS = np.array([[2.0, 1.0], [-4.0, 1.0], [0.0, -0.5]], dtype=np.float32)
#: y = (0.75 x0 + 0.25, −0.5 x1): margins by hand; the difference of the logits has the constant √(0.75² + 0.5²).
LOGITS = np.array([[1.75, -0.5], [-2.75, -0.5], [0.25, 0.25]])
PAIR = math.hypot(0.75, 0.5)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two clear rows and a tie."""
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


def check(document: object) -> None:
    """The document follows the published schema."""
    jsonschema.Draft202012Validator(json.loads(schema.read("prediction/v1"))).validate(document)


@pytest.mark.parametrize("mode", ["f64", "f32", "network"])
def test_labels_and_radii_are_those_computed_by_hand(mode: str, cli: Cli, dense: Path, rows: Path) -> None:
    result = cli("predict", dense, rows, "--certify", mode, "--json")
    assert (result.code, result.err) == (0, "")
    check(result.document)
    answer = result.document
    assert answer["label"][:2] == [0, 1]
    assert answer["certified"] == [True, True, False]
    assert answer["radius"][2] == 0.0
    for margin, radius, true_margin in zip(answer["margin"], answer["radius"], (2.25, 2.25), strict=False):
        assert math.isclose(margin, true_margin, rel_tol=1e-6)
        assert 0.999 * true_margin / PAIR <= radius <= true_margin / PAIR
    assert answer["guarantee"] == ("network" if mode == "network" else "deployed")


@pytest.mark.parametrize(("epsilon", "code", "certified"), [("1.5", 1, [True, True, False]), ("9", 1, [False] * 3)])
def test_epsilon_decides_between_0_and_1(
    epsilon: str, code: int, certified: list[bool], cli: Cli, dense: Path, rows: Path
) -> None:
    result = cli("predict", dense, rows, "--epsilon", epsilon, "--json")
    assert (result.code, result.document["certified"]) == (code, certified)


def test_all_rows_certified_is_code_0_and_a_tie_is_not_certified_at_0(cli: Cli, dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "clear.npy", ROWS[:2])
    assert cli("predict", dense, tmp_path / "clear.npy", "--epsilon", "2").code == 0
    np.save(tmp_path / "tie.npy", ROWS[2:])
    assert cli("predict", dense, tmp_path / "tie.npy", "--epsilon", "0").code == 1


def test_the_text_rounds_radii_down(cli: Cli, dense: Path, rows: Path) -> None:
    exact = cli("predict", dense, rows, "--json").document["radius"]
    lines = cli("predict", dense, rows).out.splitlines()
    assert lines[0].split("  ")[0] == "row"
    for line, radius in zip(lines[1:4], exact, strict=True):
        assert radius * (1 - 1e-6) <= float(line.split()[2]) <= radius
    assert lines[4].startswith("2 of 3 rows certified: radius above 0, l2 norm, guarantee 'deployed'")


def test_npz_and_lone_samples(cli: Cli, dense: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=ROWS, y=np.arange(3))
    assert len(cli("predict", dense, tmp_path / "data.npz", "--json").document["label"]) == 3
    np.save(tmp_path / "one.npy", ROWS[0])
    assert cli("predict", dense, tmp_path / "one.npy", "--json").document["label"] == [0]
    np.save(tmp_path / "none.npy", ROWS[:0])
    assert cli("predict", dense, tmp_path / "none.npy", "--json").document["label"] == []


def test_doubles_that_float32_holds_are_welcome_and_others_are_not(cli: Cli, dense: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS.astype(">f8"))
    assert cli("predict", dense, tmp_path / "x.npy").code == 0
    np.save(tmp_path / "x.npy", np.array([[0.1, 0.0]]))
    result = cli("predict", dense, tmp_path / "x.npy")
    assert result.code == 2
    assert "float32" in result.error


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unreadable_model_is_one_line_and_code_2(kind: str, cli: Cli, broken: dict[str, Path], rows: Path) -> None:
    result = cli("predict", broken[kind], rows, "--json")
    assert (result.code, result.out) == (2, "")
    assert str(broken[kind]) in result.error


def write_bad_input(kind: str, folder: Path) -> Path:
    """A file that ``predict`` cannot use."""
    path = folder / ("bad.npz" if kind in ("foreign.npz", "names", "pickle.npz") else "bad.npy")
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "suffix":
        path = folder / "bad.csv"
        path.write_text("1,2\n")
    elif kind == "foreign":
        path.write_bytes(b"hello, this is no array")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        np.save(path, ROWS)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "text":
        np.save(path, np.array([["a", "b"]]))
    elif kind == "names":
        np.savez(path, images=ROWS, labels=np.arange(3))
    elif kind == "foreign.npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"no array")
    elif kind == "shape":
        np.save(path, np.zeros((3, 5), np.float32))
    elif kind == "nan":
        np.save(path, np.array([[np.nan, 0.0]], np.float32))
    elif kind == "infinite":
        np.save(path, np.array([[np.inf, 0.0]], np.float32))
    else:
        raise ValueError(kind)
    return path


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [
        ("missing", "No such file or directory"),
        ("folder", "Is a directory"),
        ("suffix", "unknown kind of input file '.csv' (try: one of .npy, .npz, .png)"),
        ("foreign", "not a readable NumPy file"),
        ("empty", "not a readable NumPy file"),
        ("truncated", "not a readable NumPy file"),
        ("pickle", "not a readable NumPy file"),
        ("text", "holds <U1, not numbers"),
        ("names", "no array named 'x' (it holds images, labels)"),
        ("foreign.npz", "not a readable NumPy file (it holds other files)"),
        ("shape", "expected shape (batch, 2), got (3, 5)"),
        ("nan", "must be finite"),
        ("infinite", "must be finite"),
    ],
)
def test_bad_input_is_one_line_and_code_2(kind: str, phrase: str, cli: Cli, dense: Path, tmp_path: Path) -> None:
    result = cli("predict", dense, write_bad_input(kind, tmp_path), "--json")
    assert (result.code, result.out) == (2, ""), result.err
    assert phrase in result.error
    assert "(try: " in result.error


def test_a_refused_model_is_code_3_and_names_the_node(cli: Cli, unknown: Path, rows: Path) -> None:
    result = cli("predict", unknown, rows)
    assert result.code == 3
    assert "wobble" in result.error
    assert "lipdeploy explain LIP001" in result.error


def test_a_limit_that_is_exceeded_is_code_1(cli: Cli, dense: Path, rows: Path) -> None:
    result = cli("predict", dense, rows, "--max-lipschitz", "0.7")
    assert (result.code, result.out) == (1, "")
    assert "0.7" in result.error


def test_a_certificate_that_lies_is_code_4(cli: Cli, dense: Path, rows: Path) -> None:
    cli("verify", dense, "--write-certificate")
    beside = dense.with_suffix(".cert.json")
    beside.write_text(beside.read_text().replace('"file_sha256": "', '"file_sha256": "0', 1))
    result = cli("predict", dense, rows)
    assert (result.code, result.out) == (4, "")
    assert result.error


def test_an_output_without_classes_is_refused(cli: Cli, tmp_path: Path) -> None:
    image = '<ir_version: 9, opset_import: ["": 20]> g (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) { y = Relu (x) }'
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 2, 2), np.float32))
    result = cli("predict", write_model(tmp_path / "denoiser.onnx", image), tmp_path / "x.npy")
    assert result.code == 3
    assert "LIP019" in result.error


PIXELS = """
<ir_version: 9, opset_import: ["": 20]>
pixels (float[N, 1, 2, 2] x) => (float[N, 2] y)
<float[4, 2] w = {0.5, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0}> {
  flat = Flatten <axis = 1> (x)
  y = MatMul (flat, w)
}
"""


@pytest.mark.parametrize(
    ("pixels", "code", "phrase"),
    [
        (np.array([[200, 10], [0, 0]], np.uint8), 0, ""),
        (np.zeros((3, 3), np.uint8), 2, "the image is 1×3×3, the model takes 1×2×2"),
        (np.zeros((2, 2, 3), np.uint8), 2, "the image is 3×2×2, the model takes 1×2×2"),
        (np.zeros((2, 2), np.uint16), 2, "use an image with 8 bits per channel"),
    ],
)
def test_png(pixels: np.ndarray, code: int, phrase: str, cli: Cli, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(pixels).save(tmp_path / "x.png")
    result = cli("predict", write_model(tmp_path / "pixels.onnx", PIXELS), tmp_path / "x.png", "--json")
    assert result.code == code, result.err
    if code:
        assert phrase in result.error
    else:
        assert result.document["label"] == [0]
        assert 94.999999 < result.document["margin"][0] <= 95.0  # (200 − 10)/2, rounded down


@pytest.mark.parametrize(("content", "phrase"), [(b"no image", "not a PNG image"), (None, "No such file")])
def test_png_that_is_none(content: bytes | None, phrase: str, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    result = cli("predict", write_model(tmp_path / "pixels.onnx", PIXELS), tmp_path / "x.png")
    assert result.code == 2
    assert phrase in result.error
