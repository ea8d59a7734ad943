"""Charts as inline SVG: plain shapes whose colours come from the page, with a title and a description for readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 46
WORDS = 62  # how wide a share of accuracy is, about


def ticks(limit: float, about: int = 6) -> list[float]:
    """Round numbers from 0 to ``limit``, about so many."""
    if not (math.isfinite(limit) and limit > 0.0):
        return [0.0]
    rough = limit / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((unit * power for unit in (1.0, 2.0, 2.5, 5.0) if unit * power >= rough * 0.999), 10.0 * power)
    return [number * step for number in range(int(limit / step * (1 + 1e-9)) + 1)]


class Chart:
    """One pair of axes; x runs from 0 to ``x_limit``, y from 0 to ``y_limit``."""

    def __init__(self, name: str, title: str, description: str, x_limit: float, y_limit: float) -> None:
        self.x_limit, self.y_limit = x_limit or 1.0, y_limit or 1.0
        self.marks: list[tuple[float, float]] = []
        self.parts = [
            f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-labelledby="{name}-t {name}-d">',
            f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>',
        ]

    def x(self, value: float) -> float:
        """Where a value lies, in pixels."""
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(value / self.x_limit, 0.0), 1.0)

    def y(self, value: float) -> float:
        """Where a value lies, in pixels."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value / self.y_limit, 0.0), 1.0)

    def axes(self, x_label: str, y_label: str, y_suffix: str = "") -> None:
        """Grid, numbers and labels."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value in ticks(self.y_limit, 5):
            at = self.y(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self.text(LEFT - 8, at + 4, f"{value:g}{y_suffix}", "end")
        for value in ticks(self.x_limit, 8):
            at = self.x(value)
            self.parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
            self.text(at, bottom + 19, f"{value:g}", "middle")
        self.parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        self.text((LEFT + right) / 2, HEIGHT - 6, x_label, "middle", "label")
        middle = (TOP + bottom) / 2
        self.parts.append(
            f'<text class="label" text-anchor="middle" transform="translate(13 {middle:.1f}) rotate(-90)">'
            f"{escape(y_label)}</text>"
        )

    def text(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "tick") -> None:
        """Words at a place."""
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        """A curve with the area under it."""
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        floor = f"{self.x(xs[-1]):.1f},{self.y(0.0):.1f} {self.x(xs[0]):.1f},{self.y(0.0):.1f}"
        self.parts.append(f'<polygon class="area" points="{points} {floor}"/>')
        self.parts.append(f'<polyline class="curve" points="{points}"/>')

    def mark(self, x: float, y: float, words: str) -> None:
        """A point on the curve with a dropped line and its words."""
        at, high = self.x(x), self.y(y)
        self.parts.append(
            f'<line class="drop" x1="{at:.1f}" x2="{at:.1f}" y1="{high:.1f}" y2="{HEIGHT - BOTTOM}"/>'
            f'<circle class="dot" cx="{at:.1f}" cy="{high:.1f}" r="4"/>'
        )
        left, place = self._room(at, high)
        self.marks.append((at - 8 - WORDS if left else at + 8, place))
        self.text(at - 8 if left else at + 8, place, words, "end" if left else "start", "mark")

    def _room(self, at: float, high: float) -> tuple[bool, float]:
        """Whether words about a point stand left of it, and how high: above the curve, else below, on no others."""
        places = [(False, max(high - 8, 12.0)), (True, high + 20)]
        places += [
            (left, high + step) for step in (*range(20, 160, 16), *range(-24, -160, -16)) for left in (True, False)
        ]
        for left, place in places:
            start = at - 8 - WORDS if left else at + 8
            free = all(abs(x - start) >= WORDS or abs(y - place) >= 15 for x, y in self.marks)
            if LEFT <= start <= WIDTH - WORDS and 12 <= place < HEIGHT - BOTTOM and free:
                return left, place
        return at > WIDTH - 150, max(high - 8, 12.0)

    def bar(self, left: float, right: float, low: float, high: float, kind: str, words: str) -> None:
        """A box from (left, low) to (right, high) with words for whoever points at it."""
        x, width = self.x(left), max(self.x(right) - self.x(left) - 1.0, 0.5)
        y, height = self.y(high), self.y(low) - self.y(high)
        if height > 0.0:
            self.parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.2f}" width="{width:.1f}" height="{height:.2f}">'
                f"<title>{escape(words)}</title></rect>"
            )

    def svg(self) -> str:
        """The whole drawing."""
        return "".join((*self.parts, "</svg>"))
