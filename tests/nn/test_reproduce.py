"""tools/reproduce and tools/zoo on a crumb of their budget: every script runs to its table, plot and proven numbers."""

from __future__ import annotations

import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import lipdeploy as lip
from lipdeploy.nn.linear import project_rows_l1

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "reproduce"), str(TOOLS / "zoo")]
import classifiers  # noqa: E402
import denoising  # noqa: E402
import dual  # noqa: E402
import functions  # noqa: E402
from common import Options, once, orthonormal, tangent  # noqa: E402

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
    blocks = [functions.Block("f3", seed, rate) for seed, rate in enumerate((0.01, 0.02, 0.03))]
    for name in functions.ACTIVATIONS:
        nets = functions.train(name, blocks, config)
        x = torch.linspace(-1, 1, 9)[:, None]
        with torch.no_grad():
            together = nets(x.expand(-1, 3))
            apart = torch.cat([functions.single(nets, k, 3, name, config)(x) for k in range(3)], dim=1)
        torch.testing.assert_close(apart, together, atol=2e-5, rtol=0)


def test_each_block_moves_at_its_own_rate():
    """Against torch's Adam and schedule on the block alone, from gradients that are the same for both."""
    config = functions.Config(steps=4, spline_ratio=1 / 40)  # what parameter_groups does
    rates = (0.05, 0.01, 0.02)
    together = functions.network("spline", (3, 4, 5), config)
    apart = [functions.network("spline", (seed,), config) for seed in (3, 4, 5)]
    optimisers = [torch.optim.Adam(functions.parameter_groups(n, rate)) for n, rate in zip(apart, rates, strict=True)]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4) for optimiser in optimisers]
    step = functions.adam(together, rates, config)
    generator = torch.Generator().manual_seed(8)
    for _ in range(4):
        for whole, *parts in zip(together.parameters(), *(net.parameters() for net in apart), strict=True):
            whole.grad = torch.randn(whole.shape, generator=generator)
            for part, grad in zip(parts, whole.grad.chunk(3), strict=True):
                part.grad = grad.clone()
        step()
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
    for whole, *parts in zip(together.parameters(), *(net.parameters() for net in apart), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), atol=1e-6, rtol=0)


def test_the_trial_of_rates_chooses_the_smallest_geometric_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "ACTIVATIONS", ("ReLU",))
    monkeypatch.setattr(functions, "GRID", (1e-4, 0.05))
    assert functions.main(["--trial", "--steps", "30", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "functions_trial.json").read_text())["results"]["ReLU"]
    medians = np.median(np.array(result["errors"]), axis=2)
    np.testing.assert_allclose(result["means"], np.exp(np.log(medians).mean(axis=1)))
    assert result["means"][1] < result["means"][0]
    assert result["rate"] == 0.05


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


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (4, 7, 7), (1, 5)])
def test_the_tangent_part_is_the_nearest_tangent(shape):
    """Tangents at W are the velocities of W exp(tA) and exp(tA) W, A skew: least squares on those, by NumPy."""
    generator = torch.Generator().manual_seed(6)
    start, gradient = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    weight = orthonormal(start, 60)
    for w, g, part in zip(
        *(x.reshape(-1, *shape[-2:]).numpy() for x in (weight, gradient, tangent(weight, gradient))), strict=True
    ):
        basis = []
        for size, along in ((w.shape[0], lambda a, w=w: a @ w), (w.shape[1], lambda a, w=w: w @ a)):
            for i, j in itertools.combinations(range(size), 2):
                skew = np.zeros((size, size))
                skew[i, j], skew[j, i] = 1, -1
                basis.append(along(skew).ravel())
        columns = np.array(basis).T
        nearest = columns @ np.linalg.lstsq(columns, g.ravel(), rcond=None)[0]
        np.testing.assert_allclose(part.ravel(), nearest, atol=1e-9)


def test_newtons_projection_is_the_sorting_one():
    """For rows inside the ball, just outside, far outside, of one size only, and zero."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(40, 300, dtype=torch.float64, generator=generator)
    rows *= torch.logspace(-4, 2, 40, dtype=torch.float64)[:, None]
    rows = torch.cat([rows, torch.ones(1, 300, dtype=torch.float64), torch.zeros(1, 300, dtype=torch.float64)])
    torch.testing.assert_close(classifiers.rows_to_ball(rows, 40), project_rows_l1(rows, 1.0), atol=1e-14, rtol=0)
    assert (classifiers.rows_to_ball(rows).abs().sum(dim=1) < 1.01).all()


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
    wanted = ("--data", "digits", "--hidden", "64,32", "--epochs", "1")
    document = crumb(classifiers, tmp_path, monkeypatch, *wanted, CONFIGS=2)
    results, proven = document["results"], verified_again(tmp_path)
    assert {tuple(config["hidden"]) for config in document["config"].values()} == {(64, 32)}
    assert sorted(
        weight.dims[0]
        for weight in onnx.load(tmp_path / "classifier_digits_linf.onnx").graph.initializer
        if len(weight.dims) == 2
    ) == [10, 32, 64]
    for name, result in results.items():
        assert proven[f"classifier_digits_{name}"] == result["proven"] <= 1
        shares = [result["accuracy"], *result["certified_accuracy"].values()]
        assert shares == sorted(shares, reverse=True)


def test_denoising(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(denoising, "ACTIVATIONS", {"spline": denoising.ACTIVATIONS["spline"]})
    result = crumb(denoising, tmp_path, monkeypatch)["results"]["spline"]["0"]
    assert verified_again(tmp_path)["denoising_spline_0"] == result["proven"] <= 1
    steps = np.array(result["fill_in"]["steps"])
    assert (np.diff(steps) <= 1e-6).all()  # an averaged map: the steps of plug-and-play never grow
    assert f"→ {result['psnr']:.2f} |" in capsys.readouterr().out


def test_the_trial_of_denoising_never_sees_the_held_out_photograph(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(denoising, "ACTIVATIONS", {"ReLU": denoising.ACTIVATIONS["ReLU"]})
    monkeypatch.setattr(denoising, "GRID", (1e-5, 0.01))
    first = denoising.photographs()[0]
    monkeypatch.setattr(denoising, "photographs", lambda: (first, None))
    assert denoising.main(["--trial", "--steps", "10", "--output", str(tmp_path)]) == 0
    chosen = next(line for line in capsys.readouterr().out.splitlines() if "best" in line)
    assert chosen.startswith("| ReLU | 0.01 |")


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


def test_the_zoos_table_is_that_of_its_cards_and_states_no_bound_below_the_proven_one():
    folder = TOOLS.parent / "zoo"
    text = (folder / "README.md").read_text("utf-8")
    assert text == zoo.described(folder)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    stated = {row[0]: Fraction(row[3]) for row in cells[2:]}
    for card in folder.glob("*/card.json"):
        assert stated[card.parent.name] >= Fraction(json.loads(card.read_text("utf-8"))["proven"])
    assert len(stated) == len(list(folder.glob("*/model.onnx")))
