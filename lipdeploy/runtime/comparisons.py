"""Start-up comparisons: programs that mean one network answer a probe alike, and a row alike beside any other.

Each program has a proven error, so two of them may differ by the sum of both and no more. Where the float32 program
rounds as nobody has specified, there is no such number; it is then held to a share of how far the network moves at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import IntegrityError
from lipdeploy.runtime.inputs import flattened, probe_feeds
from lipdeploy.verify.radius import input_norm_up
from lipdeploy.verify.verdict import ErrorBound, TensorSpec, Verdict

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], Array]  # feeds → logits (rows, classes)
REPORT = "report this model: an operator here does not compute what the verifier was told"
UNSPECIFIED_SHARE = 0.25  # of L·‖x‖ and of the logits; what rounding does stays far below it


@dataclass(frozen=True)
class Probe:
    """Rows of random numbers, and upper bounds of their norms."""

    verdict: Verdict
    feeds: dict[str, Array]
    norms: Array
    open_batch: bool

    @classmethod
    def of(cls, verdict: Verdict, inputs: Sequence[TensorSpec]) -> Probe:
        """The same ones every time."""
        feeds = probe_feeds(inputs)
        norms = input_norm_up(flattened(feeds), verdict.norm)
        return cls(verdict, feeds, norms, all(spec.shape[0] is None for spec in inputs))

    def check_alike(
        self, one: Array, other: Array, errors: Sequence[ErrorBound], what: str, hint: str = REPORT
    ) -> None:
        """Raise ``IntegrityError`` where logits are further apart than ``errors`` allow together."""
        apart = np.abs(one - other).max(axis=1)
        allowed = sum(error.c0 + error.c1 * self.norms for error in errors) * (1.0 + 1e-9)
        covered = self.norms <= min(error.x_max for error in errors)
        if np.any(covered & ~(apart <= allowed)):
            raise IntegrityError(
                f"on a probe {what} differ by {apart.max():.3g}, proven is at most {np.max(allowed):.3g}", hint=hint
            )

    def check_near(self, stored: Array, double: Array) -> None:
        """The same for a float32 program whose rounding is not specified."""
        bound = self.verdict.lipschitz_bound
        assert bound is not None  # a verified verdict has one
        apart = np.abs(stored - double).max(axis=1)
        allowed = UNSPECIFIED_SHARE * (bound.value * self.norms + np.abs(double).max(axis=1))
        if np.any(apart > allowed):  # not where one of them overflows
            what = f"differ by {apart.max():.3g}, more than rounding explains"
            raise IntegrityError(f"on a probe the stored and the float64 program {what}", hint=REPORT)

    def check_rows(self, run: Run, together: Array, error: ErrorBound, program: str) -> None:
        """Raise ``IntegrityError`` where the logits of a row depend on the rows beside it."""
        if not self.open_batch:
            return
        rows = ({name: array[i : i + 1] for name, array in self.feeds.items()} for i in range(len(self.norms)))
        alone = np.concatenate([run(row) for row in rows])
        what = f"rows alone and together in the {program} program"
        self.check_alike(together, alone, (error, error), what)


def check_programs(
    probe: Probe, stored: Run, double: Run | None, errors: Mapping[str, ErrorBound | None], *, stored_answers: bool
) -> None:
    """Hold the float32 and the float64 program against each other, and each against itself row by row.

    ``errors`` are the proven ones per program; ``stored_answers``: whether that of float32 covers what runs.
    """
    single, wide = errors.get("f32"), errors.get("f64")
    stored_logits = stored(probe.feeds)
    if stored_answers and single is not None:
        probe.check_rows(stored, stored_logits, single, "stored")
    if double is None or wide is None:
        return
    double_logits = double(probe.feeds)
    probe.check_rows(double, double_logits, wide, "float64")
    if single is not None:
        probe.check_alike(stored_logits, double_logits, (single, wide), "the stored and the float64 program")
    else:
        probe.check_near(stored_logits, double_logits)
