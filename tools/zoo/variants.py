"""What storing weights in fewer bits costs: the networks of zoo/ in float32, float16, bfloat16 and int8.

::

    python tools/zoo/variants.py                       # the table of docs/precision.md, written there
    python tools/zoo/variants.py digits_linf --print   # of other networks, printed

Each variant is stored from the float32 file as ``lipdeploy export`` stores it, proven, and asked about all held-out
images in mode f64 and in mode f32. Seconds of one core for each network. Exit code 2 when a data set is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOOLS)]

import numpy as np
import onnx
from demo_data import Dataset, DatasetMissing, digits, fashion, mnist

import lipdeploy as lip
from lipdeploy.export.storage import FORMATS, store
from lipdeploy.verify.rounding import decimal_up

ZOO = TOOLS.parent / "zoo"
PAGE = TOOLS.parent / "docs" / "precision.md"
MARK = "<!-- numbers -->"
DEFAULT = ("digits_group_sort_mlp", "digits_linf", "mnist_spline_conv")
DATA = {"digits": digits, "mnist": mnist, "fashion": fashion}
HEAD = (
    "| weights | file, kB | proven L | accuracy | changed | certified accuracy at ε (`f64`) | `f32` | c1 of `f32` |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=list(DEFAULT), help=f"of zoo/ (default: {', '.join(DEFAULT)})")
    parser.add_argument("--print", action="store_true", help="print the tables and leave docs/precision.md alone")
    options = parser.parse_args(arguments)
    try:
        lines = [line for name in options.networks for line in table(name)]
    except DatasetMissing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    if options.print:
        print("\n".join(lines))
        return 0
    before = PAGE.read_text("utf-8").partition(MARK)[0]
    PAGE.write_text(before + "\n".join([MARK, *lines, ""]), "utf-8")
    return 0


def table(name: str) -> Iterator[str]:
    """The lines of one network's table."""
    card = json.loads((ZOO / name / "card.json").read_text("utf-8"))
    data = DATA[name.partition("_")[0]]()
    yield from ("", f"**{name}** ({card['network']}; {card['norm']}, {len(data.test_labels)} held-out images):", "")
    yield from HEAD
    with tempfile.TemporaryDirectory() as folder:
        labels: np.ndarray[Any, Any] | None = None
        for form in ("float32", *FORMATS):
            print(f"{name}: {form}", file=sys.stderr)
            path = stored(ZOO / name / "model.onnx", form, Path(folder))
            row, labels = measured(path, form, data, card, labels)
            yield row


def stored(source: Path, form: str, folder: Path) -> Path:
    """The file of this variant."""
    model = onnx.load(source)
    path = folder / f"{form}.onnx"
    onnx.save(model if form == "float32" else store(model, form)[0], path)
    return path


def measured(
    path: Path, form: str, data: Dataset, card: dict[str, Any], before: np.ndarray[Any, Any] | None
) -> tuple[str, np.ndarray[Any, Any]]:
    """One row of the table, and the labels of float32's file."""
    images, truth = data.test_images / np.float32(data.full_scale), data.test_labels
    sessions = {mode: lip.CertifiedSession(path, norm=card["norm"], certify=mode) for mode in ("f64", "f32")}
    answers = {mode: session.predict(images) for mode, session in sessions.items()}
    labels = answers["f64"].label
    before = labels if before is None else before
    radii = [float(e) for e in card["certified_accuracy"]][:3]
    shares = {
        mode: [percent((p.label == truth) & (p.radius > 0) & (p.radius >= e)) for e in radii]
        for mode, p in answers.items()
    }
    error = sessions["f32"].verdict.numeric_error["f32"]
    cells = (
        form,
        f"{path.stat().st_size / 1000:.1f}",
        decimal_up(sessions["f64"].lipschitz_bound, 7),
        percent(labels == truth),
        f"{int((labels != before).sum())}",
        ", ".join(f"{share} at {e:g}" for share, e in zip(shares["f64"], radii, strict=True)),
        ", ".join(shares["f32"]),
        "none" if error is None else decimal_up(error.c1, 3),
    )
    return f"| {' | '.join(cells)} |", before


def percent(mask: np.ndarray[Any, Any]) -> str:
    """A share, rounded down."""
    return f"{int(mask.sum()) * 1000 // len(mask) / 10} %"


if __name__ == "__main__":
    raise SystemExit(main())
