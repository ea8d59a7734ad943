"""The arithmetic that every proof stands on: IEEE-754, subnormal numbers kept, rounding to nearest (assumption A1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipdeploy.errors import IntegrityError


def check_arithmetic() -> None:
    """Raise ``IntegrityError`` when this thread flushes subnormal numbers or does not round to nearest.

    A library built with -ffast-math, or torch.set_flush_denormal(True), changes the thread's arithmetic behind
    everyone's back: a weight of 1e-40 is then widened to 0, and what is rounded up may lie below.
    """
    smallest, one, half_ulp = _PROBES
    rounds_to_nearest = one + half_ulp == one and one + 1.5 * half_ulp > one
    widened = _SUBNORMAL.astype(np.float64)
    if smallest + smallest == 0.0 or widened[0] == 0.0 or not rounds_to_nearest:
        raise IntegrityError(
            "this thread's floating-point arithmetic is not IEEE-754 (subnormals flushed, or another rounding mode)",
            hint="undo torch.set_flush_denormal(True); avoid libraries built with -ffast-math",
        )


_PROBES: Sequence[float] = (5e-324, 1.0, 2.0**-53)  # not literals in the function: a compiler would fold them
_SUBNORMAL = np.array([1], np.uint32).view(np.float32)
