"""What ``CertifiedSession.predict`` answers."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.verify.rounding import mul_up, read_exactly, sqrt_up, up

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CertifiedPrediction:
    """Labels with their certified radii, one entry per row of the batch.

    ``label`` int64 (batch,). ``radius`` float64 (batch,): inside the open ball of this radius around the row, in
    the input norm of ``norm``, the class does not change, in the sense of ``guarantee`` (``"deployed"``: of the
    program that answered; ``"network"``: of the real-valued network); 0 where nothing is certified, +inf where the
    class never changes. ``margin`` float64 (batch,): best logit minus the runner-up. ``certified`` bool (batch,):
    radius > 0 and ≥ ``epsilon``. ``logits`` float64 (batch, classes) as the answering program computed them.
    ``program`` (batch,): ``"f64"`` or ``"f32"``, the program that answered each row.
    ``lipschitz_bound`` and ``certificate_sha256`` name the statement that the radii rest on; ``input_size`` is the
    number of values in a row.
    """

    label: Array
    radius: Array
    margin: Array
    certified: Array
    logits: Array
    program: Array
    norm: str
    lipschitz_bound: float
    guarantee: str
    epsilon: float | None
    input_size: int
    certificate_sha256: str = ""

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.label)

    @property
    def label_or_abstain(self) -> Array:
        """The label where it is certified, −1 elsewhere."""
        return np.where(self.certified, self.label, -1)

    def linf_radius(self) -> Array:
        """The radii as ℓ∞ radii, rounded down: r/√n from an ℓ2 certificate, r/n from ℓ1, r itself from ℓ∞."""
        return linf_radius(self.radius, self.norm, self.input_size)


def linf_radius(radius: Array, norm: str, size: int) -> Array:
    """``radius`` in the input norm of ``norm`` as ℓ∞ radii, rounded down; a row has ``size`` values."""
    input_norm = norm.split("-")[0]
    if input_norm == "linf":
        return radius
    divided = np.nextafter(radius / (sqrt_up(float(size)) if input_norm == "l2" else float(size)), -np.inf)
    return np.where(np.isinf(radius), radius, np.maximum(divided, 0.0))


def radius_for_linf(epsilon: float, norm: str, size: int) -> float:
    """A radius in the input norm of ``norm``, rounded up, whose ``linf_radius`` is above 0 and at least ``epsilon``.

    ε·√n in ℓ2, ε·n in ℓ1, or the largest float. Two steps above ε: for the one that ``linf_radius`` goes down, and
    for ε = 0.
    """
    input_norm = norm.split("-")[0]
    if input_norm == "linf":
        return epsilon
    factor = sqrt_up(float(size)) if input_norm == "l2" else float(size)
    return min(mul_up(up(up(epsilon)), factor), sys.float_info.max)


def checked_epsilon(epsilon: float | None) -> float:
    """``epsilon`` as a float that is not below it, 0 for ``None``; ``InputError`` unless it is finite and ≥ 0."""
    try:
        exact: Any = read_exactly(epsilon) if isinstance(epsilon, str) else epsilon
        exact = exact.item() if isinstance(exact, np.integer) else exact  # NumPy would compare it as a float64
        value = 0.0 if epsilon is None else math.nan if exact is None else float(exact)
        if exact is not None and value < exact:  # a Fraction, a whole number, ...
            value = up(value)
    except (TypeError, ValueError, ArithmeticError) as error:  # a Decimal that is no number cannot be compared
        raise InputError(f"epsilon must be a number, got {epsilon!r}") from error
    if not (math.isfinite(value) and value >= 0.0):
        raise InputError(f"epsilon must be finite and not negative, got {epsilon!r}")
    return value
