"""Denoising of photographs by an averaged 1-Lipschitz CNN, and a plug-and-play reconstruction that must converge.

Paper A (arXiv 2210.16222): convolutional denoisers with learned splines against other activations at equal size and
equal bound. Here D(x) = (x + N(x))/2 with N a chain of orthogonal convolutions with circular padding (BCOP, as in the
paper, by orthogonium), so D is averaged; the proven constant of the exported D is in the table. Data: scikit-learn's
two photographs, one to train on, its right fifth kept for choosing settings, and one held out. Then y ↦ x with missing
pixels filled in by forward-backward steps x ← D(x − ∇‖m·x − y‖²/2): for an averaged D the steps shrink, and the table
says by how much.

Each activation has its own learning rate, of `GRID` the one with the highest PSNR on that fifth with the seed 100.

::

    python tools/reproduce/denoising.py --quick                      # about a minute of one core
    python tools/reproduce/denoising.py --trial --output /tmp/trial  # every rate of the grid, seed 100
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from common import Options, once, parse, plt, progress, prove, rounded_up, table, write
from orthogonium.layers import AdaptiveOrthoConv2d
from torch import Tensor, nn

from lipdeploy.nn import AOLConv2d, LinearSpline, MaxMin, bake, parameter_groups, tv2

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "ReLU": lambda channels: nn.ReLU(),
    "MaxMin": lambda channels: MaxMin(),
    "spline": lambda channels: LinearSpline(channels, 51, 0.1, init="identity"),
}
#: The learning rates that a trial compares, and what it chose.
GRID = (0.004, 0.01, 0.02)
RATES = {"ReLU": 0.004, "MaxMin": 0.01, "spline": 0.004}


@dataclass(frozen=True)
class Config:
    """The paper uses 8 layers of 64 channels, 40 × 40 patches and batches of 128; sigma is its smaller noise.

    ``convolution``: ``"BCOP"`` (orthogonal, by orthogonium) or ``"AOL"``. ``trained_on``: columns of the photograph.
    """

    convolution: str = "BCOP"
    sigma: float = 5 / 255
    channels: int = 16
    layers: int = 6
    patch: int = 40
    batch: int = 8
    steps: int = 1500
    quick_steps: int = 300
    learning_rate: float = 1e-2
    trained_on: int = 512
    tv2_weight: float = 1e-6
    kept: float = 0.5
    iterations: int = 60


class Averaged(nn.Module):
    """(x + N(x))/2 with a 1-Lipschitz N: averaged, hence 1-Lipschitz."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W)."""
        return 0.5 * x + 0.5 * self.inner(x)


def denoiser(activation: str, config: Config) -> nn.Module:
    """Layers 1 → channels → … → 1, all 3 × 3 with circular padding."""
    sizes = [1, *[config.channels] * (config.layers - 1), 1]
    inner: list[nn.Module] = []
    for size, width in pairwise(sizes):
        inner += [CONVOLUTIONS[config.convolution](size, width), ACTIVATIONS[activation](width)]
    return Averaged(nn.Sequential(*inner[:-1]))


def _orthogonal(size: int, width: int) -> nn.Module:
    layer = AdaptiveOrthoConv2d(size, width, 3, padding=1, padding_mode="circular")
    nn.init.zeros_(layer.bias)
    return layer


def _almost_orthogonal(size: int, width: int) -> nn.Module:
    """The identity plus noise, to start with."""
    layer = AOLConv2d(size, width, 3, padding=1, padding_mode="circular")
    with torch.no_grad():
        layer.weight = nn.init.dirac_(torch.empty(width, size, 3, 3)) + 0.02 * torch.randn(width, size, 3, 3)
    return layer


CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {"BCOP": _orthogonal, "AOL": _almost_orthogonal}


def photographs() -> tuple[Tensor, Tensor]:
    """Grey levels in [0, 1] of scikit-learn's china.jpg, to train on, and flower.jpg, held out; (1, 1, 426, 640)."""
    from sklearn.datasets import load_sample_images

    grey = [np.asarray(image, np.float32).mean(axis=2) / 255 for image in load_sample_images().images]
    first, second = (torch.from_numpy(image)[None, None, :426, :640] for image in grey)
    return first, second


def patches(image: Tensor, count: int, size: int) -> Tensor:
    """Random windows, (count, 1, size, size)."""
    tops = torch.randint(image.shape[2] - size, (count,)).tolist()
    lefts = torch.randint(image.shape[3] - size, (count,)).tolist()
    return torch.cat([image[:, :, t : t + size, s : s + size] for t, s in zip(tops, lefts, strict=True)])


def train(activation: str, config: Config, options: Options) -> tuple[nn.Module, list[float]]:
    """Mean squared error against the clean patch; also ten values, in dB, on the part that is not trained on."""
    torch.manual_seed(options.seed)
    net = denoiser(activation, config)
    image, kept = photographs()[0].split((config.trained_on, 640 - config.trained_on), dim=3)
    noisy_kept = kept + config.sigma * torch.randn(kept.shape, generator=torch.Generator().manual_seed(1))
    steps, history = options.budget(config.quick_steps, config.steps), []
    optimiser = torch.optim.Adam(parameter_groups(net, config.learning_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with progress(f"denoising, {activation}", steps) as advance:
        for step in range(1, steps + 1):
            clean = patches(image, config.batch, config.patch)
            noisy = clean + config.sigma * torch.randn_like(clean)
            optimiser.zero_grad()
            loss = 1e3 * (net(noisy) - clean).square().mean() + config.tv2_weight * tv2(net)
            loss.backward()
            optimiser.step()
            schedule.step()
            advance()
            if kept.numel() and step % max(1, steps // 10) == 0:
                history.append(_quality(net, noisy_kept, kept))
    return bake(net), history


@torch.no_grad()
def _quality(net: nn.Module, noisy: Tensor, clean: Tensor) -> float:
    net.eval()
    result = psnr(net(noisy), clean)
    net.train()
    return round(result, 3)


def psnr(x: Tensor, clean: Tensor) -> float:
    """In dB, full scale 1."""
    return -10 * math.log10(float((x - clean).square().mean()))


@torch.no_grad()
def fill_in(net: nn.Module, config: Config) -> dict[str, Any]:
    """Forward-backward steps on a 96 × 96 window of the held-out photograph with half of its pixels missing."""
    torch.manual_seed(7)
    clean = photographs()[1][:, :, 150:246, 250:346]
    mask = (torch.rand_like(clean) < config.kept).float()
    seen = mask * clean
    x, sizes = seen + (1 - mask) * 0.5, []
    start = psnr(x, clean)
    for _ in range(config.iterations):
        following = net(x - mask * (x - seen))
        sizes.append(float((following - x).norm()))
        x = following
    return {"start": start, "end": psnr(x, clean), "steps": sizes}


def run(options: Options, activation: str, config: Config) -> dict[str, Any]:
    """One denoiser: trained, exported, proven, measured on the held-out photograph, and used to fill in pixels."""
    stem = f"denoising_{activation}_{options.seed}"

    def make() -> dict[str, Any]:
        net, history = train(activation, config, options)
        clean = photographs()[1][:, :, 100:356, 200:456]
        torch.manual_seed(99)
        noisy = clean + config.sigma * torch.randn_like(clean)
        with torch.no_grad():
            quality = psnr(net(noisy), clean)
        example = noisy[:, :, : config.patch, : config.patch]
        proven = prove(net, example, options.folder / f"{stem}.onnx")
        facts = {"noisy": psnr(noisy, clean), "psnr": quality, "proven": proven, "history": history}
        return {**facts, "fill_in": fill_in(net, config)}

    return once(options, stem, [config, options.seed, options.quick, options.steps], make)


def trial(options: Options, activation: str, rate: float) -> dict[str, Any]:
    """The PSNR on the fifth that is not trained on, ten times during training; the held-out photograph is not used."""
    config = Config(learning_rate=rate)
    described = [config, options.seed, options.quick, options.steps]
    stem = f"trial_{activation}_{rate:g}"
    return once(options, stem, described, lambda: {"history": train(activation, config, options)[1]})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--trial", action="store_true", help="compare learning rates only")
    own.add_argument("--seeds", type=int, default=3, help="how many, from --seed on; --quick takes one")
    chosen, _ = own.parse_known_args(arguments)
    options = parse(__doc__, arguments, seed=100 if chosen.trial else 0, own=own)
    if chosen.trial:
        _compare_rates(options)
    else:
        _fill_table(options, range(options.seed, options.seed + (1 if options.quick else chosen.seeds)))
    return 0


def _compare_rates(options: Options) -> None:
    rows: list[tuple[Any, ...]] = []
    for activation in ACTIVATIONS:
        results = {rate: trial(options, activation, rate) for rate in GRID}
        best = max(GRID, key=lambda rate: results[rate]["history"][-1])
        for rate, r in results.items():
            half, end = r["history"][len(r["history"]) // 2 - 1], r["history"][-1]
            rows.append((activation, rate, half, end, "best" if rate == best else "", r["cpu_seconds"]))
    columns = ("activation", "rate", "half way, dB", "end, dB", "", "CPU s")
    table(f"On the part not trained on, seed {options.seed}", columns, rows)


def _fill_table(options: Options, seeds: Sequence[int]) -> None:
    results = {
        activation: {
            seed: run(replace(options, seed=seed), activation, Config(learning_rate=RATES[activation]))
            for seed in seeds
        }
        for activation in ACTIVATIONS
    }
    write(options, "denoising", Config(), {"rates": RATES, **results})
    _plot(options, results)
    rows = [(activation, RATES[activation], *_row(list(runs.values()))) for activation, runs in results.items()]
    columns = (
        "activation",
        "rate",
        "denoising, dB",
        "its range",
        "half way, end",
        "largest proven L of D",
        "filling in, dB",
        "last step / first step",
        "CPU s",
    )
    table(f"Photograph, σ = {Config.sigma * 255:g}/255, mean of the seeds {list(seeds)}", columns, rows)


def _row(runs: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """Means over the seeds; filling in is the first seed's."""
    first, quality = runs[0], [r["psnr"] for r in runs]
    middle = len(first["history"]) // 2 - 1
    half, end = (np.mean([r["history"][k] for r in runs]) for k in (middle, -1))
    steps = first["fill_in"]["steps"]
    return (
        f"{first['noisy']:.2f} → {np.mean(quality):.2f}",
        f"{min(quality):.2f} to {max(quality):.2f}",
        f"{half:.2f}, {end:.2f}",
        rounded_up(max(r["proven"] for r in runs)),
        f"{first['fill_in']['start']:.2f} → {first['fill_in']['end']:.2f}",
        f"{steps[-1] / steps[0]:.1e}",
        round(sum(r["cpu_seconds"] for r in runs)),
    )


def _plot(options: Options, results: dict[str, dict[int, Any]]) -> None:
    """Left, training with every seed; right, plug-and-play with the first."""
    pyplot = plt()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for k, (activation, runs) in enumerate(results.items()):
        for number, result in enumerate(runs.values()):
            share = np.linspace(0, 1, len(result["history"]) + 1)[1:]
            label = None if number else activation
            left.plot(100 * share, result["history"], marker=".", color=f"C{k}", linewidth=0.8, label=label)
        filled = next(iter(runs.values()))["fill_in"]
        right.semilogy(filled["steps"], color=f"C{k}", label=f"{activation}: {filled['end']:.2f} dB")
    left.set_xlabel("training, %")
    left.set_ylabel("PSNR on the part not trained on, dB")
    right.set_xlabel("iteration of plug-and-play")
    right.set_ylabel("‖x_{k+1} − x_k‖")
    for axis in (left, right):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.folder / "denoising.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
