"""What a learned spline costs in training: forward and backward against ReLU on the same bytes, eager and compiled.

::

    python tools/train/spline_speed.py              # one thread, CPU seconds, medians of interleaved calls
    python tools/train/spline_speed.py --eager      # without torch.compile, which needs a C++ compiler
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipdeploy.nn import LinearSpline

SHAPES = ((256, 256), (16, 64, 32, 32), (16, 64, 64, 64))
KNOTS = 51


def step(layer: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Callable[[], None]:
    """One forward and one backward pass of ``layer`` on inputs of ``shape``."""
    x, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def run() -> None:
        x.grad = None
        layer(x).backward(gradient)

    return run


def medians(steps: dict[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    """Milliseconds of CPU time, the contenders in turn."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repetitions + 2):
        for name, run in steps.items():
            began = time.process_time()
            run()
            if turn >= 2:  # the first calls compile and fill caches
                taken[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(values) for name, values in taken.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| shape | ReLU, ms | spline, ms | × | with α, ms | × | compiled ReLU | spline | × | with α | × |")
    print("|" + " --- |" * 11)
    for shape in SHAPES:
        plain, scaled = (LinearSpline(shape[1], KNOTS, 1.0, learnable_scaling=learn) for learn in (False, True))
        layers: dict[str, Callable[[Tensor], Tensor]] = {"ReLU": nn.ReLU(), "plain": plain, "scaled": scaled}
        if not options.eager:
            layers |= {f"compiled {name}": torch.compile(layer) for name, layer in layers.items()}
        times = medians({name: step(layer, shape) for name, layer in layers.items()}, options.repetitions)
        cells = [" × ".join(map(str, shape))]
        for prefix in ("", "compiled ")[: 1 if options.eager else 2]:
            floor = times[f"{prefix}ReLU"]
            cells.append(f"{floor:.2f}")
            for name in ("plain", "scaled"):
                cells += [f"{times[prefix + name]:.2f}", f"{times[prefix + name] / floor:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
