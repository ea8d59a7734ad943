"""``lipdeploy export``: what it writes, what it says, and that it leaves nothing behind when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from lipdeploy.cli import schema
from tests.cli.conftest import Cli

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

FACTORIES = """
import sys
import torch
from torch import nn


def build():
    print("chatter of a factory")
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def vacuous():
    network = build()
    with torch.no_grad():
        network[0].weight.mul_(1000)
    return network


class Attention(nn.Module):
    def forward(self, x):
        return x * x.sum(dim=1, keepdim=True)


def attention():
    return Attention()


def nan():
    network = build()
    with torch.no_grad():
        network[0].weight[0, 0] = float("nan")
    return network


def needs_an_argument(width):
    return nn.Linear(width, 2)


def leaves():
    sys.exit(1)


def number():
    return 3


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, x, z):
        return self.first(x) + self.second(z), self.first(x) - self.second(z)


def two():
    torch.manual_seed(0)
    return Two()
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A file with factories, alone in a folder."""
    (tmp_path / "net.py").write_text(FACTORIES)
    return tmp_path / "net.py"


@pytest.mark.parametrize("option", ["--checkpoint", "--class-names", "--samples"])
@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data", "m.cert.json"])
def test_no_file_of_the_model_replaces_what_it_is_made_from(option: str, name: str, cli: Cli, net: Path) -> None:
    given = net.with_name(name)
    given.write_text("given")
    result = cli("export", f"{net}:build", "-o", net.with_name("m.onnx"), "--input-shape", "4", option, given)
    assert (result.code, given.read_text()) == (2, "given")
    assert f"--output: {given} is the {option[2:].replace('-', ' ')}" in result.error


def left_in(folder: Path) -> set[str]:
    """What lies in the folder, apart from Python's caches."""
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


def test_json_follows_the_schema_and_nothing_else_is_printed(cli: Cli, net: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    result = cli("export", f"{net}:build", "-o", target, "--input-shape", "4", "--json")
    assert result.code == 0, result.err
    jsonschema.Draft202012Validator(json.loads(schema.read("export-report/v1"))).validate(result.document)
    assert result.document["path"] == str(target)
    assert result.document["certificate"] == str(tmp_path / "m.cert.json")
    assert result.document["bytes"] == target.stat().st_size
    assert left_in(tmp_path) == {"net.py", "m.onnx", "m.cert.json"}
    (model,) = cli("verify", target, "--json").document["models"]
    assert (model["status"], model["lipschitz_bound"]) == ("verified", result.document["lipschitz_bound"])


def test_text_options_and_the_way_into_predict(cli: Cli, net: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n", "utf-8")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), y=np.zeros(8))
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).state_dict(),
        tmp_path / "w.pt",
    )
    target = tmp_path / "m.onnx"
    result = cli(
        "export", f"{net}:build", "-o", target, "--checkpoint", tmp_path / "w.pt", "--samples", tmp_path / "data.npz",
        "--class-names", tmp_path / "names.txt", "--input-scale", "1/2", "--mean", "0.1", "--std", "0.5",
        "--normalize", "--max-lipschitz", "0.01", "--opset", "19", "--norm", "l2",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert f"Wrote {target}" in result.out
    assert "Differs from torch by" in result.out
    assert "Outputs scaled by" in result.out
    predicted = cli("predict", target, tmp_path / "data.npz", "--max-lipschitz", "0.01")
    assert predicted.code == 0, predicted.err
    assert " cat " in predicted.out or " dog " in predicted.out


def test_several_inputs_and_outputs_on_the_way_to_a_server(cli: Cli, net: Path, tmp_path: Path) -> None:
    """One output is named once to each command; the file keeps both."""
    target, rows = tmp_path / "two.onnx", np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    words = ("--input-shape", "4", "--input-shape", "3")
    assert cli("export", f"{net}:two", "-o", target, *words).code == 3
    chosen = ("--graph-output", "output_1")
    assert cli("export", f"{net}:two", "-o", target, *words, *chosen).code == 0
    np.savez(tmp_path / "data.npz", input_0=rows, input_1=rows[:, :3])
    assert cli("predict", target, tmp_path / "data.npz", *chosen).code == 0
    assert cli("predict", target, tmp_path / "data.npz").code == 3
    assert cli("package", "triton", target, "-o", tmp_path / "repository").code == 3
    assert cli("package", "triton", target, "-o", tmp_path / "repository", *chosen).code == 0
    config = (tmp_path / "repository/two/config.pbtxt").read_text()
    assert 'key: "output_name" value { string_value: "output_1" }' in config
    assert cli("package", "kserve", target, "-o", tmp_path / "kserve", *chosen).code == 0
    assert "--graph-output=output_1" in (tmp_path / "kserve/serving-runtime.yaml").read_text()
    assert cli("bench", target, "--seconds", "0.01", "--batch", "1", "--certify", "f64", *chosen).code == 0


@pytest.mark.parametrize(
    ("words", "code", "phrase"),
    [
        (("missing.py:build",), 2, "there is no file missing.py"),
        (("no.such.package:build",), 2, "there is no module 'no'"),
        (("NET",), 2, "cannot read the target"),
        (("weights.pth",), 2, "weights go in by --checkpoint FILE"),
        (("NET:two", "--input-shape", "4", "--input-shape", "3", "--samples", "NET"), 2, "net.py"),
        (("NET:nothing",), 2, "has no 'nothing'"),
        (("NET:number",), 2, "returned int"),
        (("NET:needs_an_argument",), 2, "raised TypeError"),
        (("NET:leaves",), 2, "leaves"),
        (("program.pt2",), 2, "there is no file program.pt2"),
        (("NET:build", "--input-shape", "5"), 2, "cannot run on an input of shape"),
        (("NET:build", "--checkpoint", "nowhere.pt"), 2, "there is no file nowhere.pt"),
        (("NET:build", "--checkpoint", "NET"), 2, "net.py"),
        (("NET:build", "--class-names", "nowhere.txt"), 2, "nowhere.txt: No such file or directory"),
        (("NET:build", "--samples", "nowhere.npz"), 2, "nowhere.npz: No such file or directory"),
        (("NET:build", "--std", "0.1,0.2,0.3"), 2, ""),
        (("NET:build", "-o", "model.txt"), 2, "must end in .onnx"),
        (("NET:build", "-o", "no/such/folder/m.onnx"), 2, "does not exist"),
        (("NET:attention",), 3, "LIP004"),
        (("NET:nan",), 3, "LIP003"),
        (("NET:vacuous", "--max-lipschitz", "1"), 1, "exceeds 1; largest gains: '0' (Gemm) "),
        (("NET:build", "--tolerance", "1e-30", "--input-scale", "1/3"), 4, "differs from the torch module"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], code: int, phrase: str, cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word.replace("NET", str(net)) for word in words]
    options = [
        *(() if "-o" in given else ("-o", "m.onnx")),
        *(() if "--input-shape" in given else ("--input-shape", "4")),
    ]
    result = cli("export", *given, *options, "--json")
    assert (result.code, result.out) == (code, ""), result.err
    (line,) = [line for line in result.err.splitlines() if line != "chatter of a factory"]
    assert line.startswith("error: ")
    assert phrase in line
    assert "Traceback" not in result.err
    assert left_in(tmp_path) == {"net.py"}


def test_double_precision_is_compared_in_double_precision(cli: Cli, net: Path, tmp_path: Path) -> None:
    words = ("--dtype", "float64", "--input-dtype", "float64", "--input-shape", "4", "--json")
    result = cli("export", f"{net}:build", "-o", tmp_path / "m.onnx", *words)
    assert result.code == 0, result.err
    assert result.document["parity"]["max_abs"] < 1e-12


def test_an_older_export_survives_a_failed_one(cli: Cli, net: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    assert cli("export", f"{net}:build", "-o", target, "--input-shape", "4").code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert cli("export", f"{net}:attention", "-o", target, "--input-shape", "4").code == 3
    assert cli("export", f"{net}:vacuous", "-o", target, "--input-shape", "4", "--max-lipschitz", "1").code == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_neither_shape_nor_samples(cli: Cli, net: Path, tmp_path: Path) -> None:
    result = cli("export", f"{net}:build", "-o", tmp_path / "m.onnx")
    assert result.code == 2
    assert "neither --input-shape nor --samples" in result.error


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"", "empty"),
        (b"cat\n\ndog\n", "line 2: blank"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"only one\n", "1 class names"),
    ],
)
def test_class_names_that_do_not_fit(content: bytes, phrase: str, cli: Cli, net: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    words = ("-o", tmp_path / "m.onnx", "--input-shape", "4", "--class-names", tmp_path / "names.txt", "--json")
    result = cli("export", f"{net}:build", *words)
    assert (result.code, result.out) == (2, "")
    assert phrase in result.err


CONVOLUTIONAL = """
import torch
from torch import nn
from lipdeploy.nn import AOLConv2d, MaxMin, SpectralLinear


def build():
    torch.manual_seed(0)
    head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), SpectralLinear(8 * 4 * 4, 10))
    return nn.Sequential(AOLConv2d(3, 8, 3, 1, 1), MaxMin(), nn.BatchNorm2d(8), head).eval()
"""


def test_pixels_in_and_radii_out(cli: Cli, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("onnxruntime")
    (tmp_path / "conv.py").write_text(CONVOLUTIONAL)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", pixels.transpose(2, 0, 1)[None])
    words = ("--input-shape", "3,8,8", "--input-dtype", "uint8", "--input-scale", "1/255", "--mean", "0.5,0.4,0.3")
    result = cli("export", f"{tmp_path / 'conv.py'}:build", "-o", tmp_path / "m.onnx", *words, "--std", "0.2,0.2,0.2")
    assert result.code == 0, result.err
    answers = [cli("predict", tmp_path / "m.onnx", tmp_path / name, "--json") for name in ("x.png", "x.npy")]
    assert [answer.code for answer in answers] == [0, 0], answers[0].err
    assert answers[0].document == answers[1].document
    assert answers[0].document["radius"][0] > 1.0, "a radius in the units of pixels"
