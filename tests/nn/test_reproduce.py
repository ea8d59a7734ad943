"""tools/reproduce and tools/zoo on a crumb of their budget: every script runs to its table, plot and proven numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lipdeploy as lip

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "reproduce"), str(TOOLS / "zoo")]
import classifiers  # noqa: E402
import denoising  # noqa: E402
import dual  # noqa: E402
import functions  # noqa: E402
from common import Options, once, orthonormal  # noqa: E402

import build as zoo  # noqa: E402  (tools/ is not a package)

pytestmark = pytest.mark.usefixtures("torch_settings")


def crumb(script, folder: Path, monkeypatch, *more: str, **fewer) -> dict:
    """Run ``main`` with two steps per network on the first entry of the dictionaries named, and read its JSON."""
    for name, count in fewer.items():
        whole = getattr(script, name)
        monkeypatch.setattr(script, name, dict(list(whole.items())[:count]))
    assert script.main(["--quick", "--steps", "2", "--output", str(folder), *more]) == 0
    return json.loads((folder / f"{script.__name__}.json").read_text())


def verified_again(folder: Path) -> dict[str, float]:
    """Each file's bound, proven once more from the file alone."""
    proven = {}
    for path in folder.rglob("*.onnx"):
        verdict = lip.verify(path, norm="linf" if "linf" in path.stem else "l2")
        assert verdict.status == "verified"
        proven[path.stem] = float(verdict.lipschitz_bound.value)
    return proven


def test_functions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(functions, "ACTIVATIONS", ("GroupSort", "spline"))
    document = crumb(functions, tmp_path, monkeypatch, FUNCTIONS=1)
    results = document["results"]["f1"]
    assert len(set(results["spline"]["errors"])) == 5
    assert results["spline"]["median"] == sorted(results["spline"]["errors"])[2]
    proven = verified_again(tmp_path)
    assert proven["functions_f1_spline"] == results["spline"]["proven"] <= 1 + 1e-6
    assert (tmp_path / "functions.png").stat().st_size > 5000
    assert "| spline |" in capsys.readouterr().out


def test_the_target_functions_are_1_lipschitz():
    x = torch.linspace(-1, 1, 20_001)
    for name, function in functions.FUNCTIONS.items():
        slopes = (function(x).double().diff() / x.double().diff()).abs()
        assert 0.9 < float(slopes.max()) < 1.01, name


def test_a_network_cut_out_of_the_blocks_is_the_same_function():
    config = functions.Config(steps=3, seeds=3)
    for name in functions.ACTIVATIONS:
        nets = functions.train(name, [functions.FUNCTIONS["f3"]] * 3, (0, 1, 2), config)
        x = torch.linspace(-1, 1, 9)[:, None]
        with torch.no_grad():
            together = nets(x.expand(-1, 3))
            apart = torch.cat([functions.single(nets, k, 3, name, config)(x) for k in range(3)], dim=1)
        torch.testing.assert_close(apart, together, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 7, 7)])
def test_a_matrix_thrown_out_of_the_basin_comes_back(shape):
    """Plain iterations diverge from singular values above √3; here any start of full rank ends orthonormal."""
    generator = torch.Generator().manual_seed(5)
    start = 50 * torch.randn(shape, dtype=torch.float64, generator=generator)
    singular = torch.linalg.svdvals(orthonormal(start, 60))
    torch.testing.assert_close(singular, torch.ones_like(singular), atol=1e-9, rtol=0)
    # Nearly orthonormal: left to the plain iteration.
    u, _, v = torch.linalg.svd(start, full_matrices=False)
    near = (
        u
        @ torch.diag_embed(torch.linspace(0.97, 1.03, u.shape[-1], dtype=torch.float64).expand((*u.shape[:-2], -1)))
        @ v
    )
    plain = 1.5 * near - 0.5 * near @ near.mT @ near
    torch.testing.assert_close(orthonormal(near), plain, atol=1e-14, rtol=0)


def test_dual(tmp_path, monkeypatch):
    monkeypatch.setattr(dual, "ACTIVATIONS", {"full sort": dual.ACTIVATIONS["full sort"]})
    names = ("absolute value", "digits, 0 against 1")
    monkeypatch.setattr(dual, "PROBLEMS", {name: dual.PROBLEMS[name] for name in names})
    results = crumb(dual, tmp_path, monkeypatch)["results"]
    for row in results.values():
        for result in row.values():
            assert result["lower_bound"] == pytest.approx(result["value"] / result["proven"])
            assert result["lower_bound"] <= result["true_value"] * (1 + 1e-6)
    assert len(verified_again(tmp_path)) == 2


def test_exact_distance_on_points_of_a_line():
    first, second = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[2.0], [4.0], [0.5]])
    # On a line, sorting is optimal: |0 − 0.5| + |1 − 2| + |5 − 4|, over three.
    assert dual.exact_distance(first, second) == pytest.approx(2.5 / 3)


def test_classifiers(tmp_path, monkeypatch):
    results = crumb(classifiers, tmp_path, monkeypatch, "--data", "digits", CONFIGS=2)["results"]
    proven = verified_again(tmp_path)
    for name, result in results.items():
        assert proven[f"classifier_digits_{name}"] == result["proven"] <= 1
        shares = [result["accuracy"], *result["certified_accuracy"].values()]
        assert shares == sorted(shares, reverse=True)


def test_denoising(tmp_path, monkeypatch):
    monkeypatch.setattr(denoising, "ACTIVATIONS", {"spline": denoising.ACTIVATIONS["spline"]})
    result = crumb(denoising, tmp_path, monkeypatch)["results"]["spline"]
    assert verified_again(tmp_path)["denoising_spline"] == result["proven"] <= 1
    steps = np.array(result["fill_in"]["steps"])
    assert (np.diff(steps) <= 1e-6).all()  # an averaged map: the steps of plug-and-play never grow


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    options, calls = Options(True, 0, None, tmp_path), []
    for config in ({"width": 1}, {"width": 1}, {"width": 2}):
        once(options, "name", config, lambda: calls.append(1) or {"value": len(calls)})
    assert len(calls) == 2
    assert once(options, "name", {"width": 2}, dict)["value"] == 2


def test_the_zoo_builds_a_network_with_certificate_and_card(tmp_path):
    words = ["--only", "digits_spline_mlp", "--only", "digits_linf", "--limit", "200", "--output", str(tmp_path)]
    assert zoo.main(words) == 0
    for name, norm in (("digits_spline_mlp", "l2"), ("digits_linf", "linf")):
        card = json.loads((tmp_path / name / "card.json").read_text())
        assert card["norm"] == norm
        assert card["proven"] <= 1
        verdict = lip.verify(tmp_path / name / "model.onnx", norm=norm)
        assert float(verdict.lipschitz_bound.value) == card["proven"]
        assert f"| {name} |" in (tmp_path / "README.md").read_text()


COMMITTED = sorted(path.parent for path in (TOOLS.parent / "zoo").glob("*/card.json"))


@pytest.mark.parametrize("home", COMMITTED, ids=lambda home: home.name)
def test_the_cards_of_the_zoo_are_true(home):
    card = json.loads((home / "card.json").read_text())
    verdict = lip.verify(home / "model.onnx", norm=card["norm"])
    assert verdict.status == "verified"
    assert card["data"] and card["trained"] and card["command"] and card["license"]
    shares = card.get("certified_accuracy", {})
    assert {"psnr", "psnr_noisy"} <= set(card) or (shares and 0 <= min(shares.values()) <= card["accuracy"] <= 100)
    assert float(verdict.lipschitz_bound.value) == pytest.approx(card["proven"], rel=1e-12)
    assert (home / "model.onnx").stat().st_size == card["bytes"] < 200_000


def test_the_zoo_is_there_and_small():
    assert len(COMMITTED) >= 6
    assert sum(path.stat().st_size for home in COMMITTED for path in home.iterdir()) < 1_000_000
