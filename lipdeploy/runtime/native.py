"""The library's own functions around the programs: the same numbers as NumPy's, in one or two calls instead of thirty.

With the caches full of weights, thirty array operations cost up to a quarter of a small network. The meaning stays in
``lipdeploy/verify/radius.py``: a session compares both bit for bit before it answers, and takes NumPy's way for
everything but the plain case (no library, no finite score, a gap that never changes, one logit).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipdeploy.errors import IntegrityError
from lipdeploy.runtime.library import REINSTALL, OperatorLibrary
from lipdeploy.verify.radius import CertifiedRows, RadiusRule, input_norm_up, length_factor

Array = np.ndarray[Any, Any]
POINTER, WHOLE, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_first_byte: Any = ctypes.c_byte.from_buffer


def _address(array: Array) -> int:
    """Of the first value of a contiguous array. The short way costs a quarter of ``array.ctypes.data``."""
    if array.flags.writeable and array.size:
        return ctypes.addressof(_first_byte(array))
    return array.ctypes.data


class Constants(ctypes.Structure):
    """``Rule`` of f64_radius.cc."""

    _fields_ = [
        ("denominators", POINTER), ("classes", WHOLE), ("columns", WHOLE),
        ("factor", REAL), ("slope", REAL), ("offset", REAL), ("ceiling", REAL),
    ]  # fmt: skip


@dataclass(frozen=True)
class Native:
    """``widen``, ``radii`` and ``answers`` of one library."""

    path: str
    widen_function: Any
    radii_function: Any
    answers_function: Any

    def widened(self, x: Array) -> tuple[Array, Array]:
        """A contiguous float32 array in float64, and upper bounds of the ℓ2 norms of its rows."""
        wide, lengths = np.empty(x.shape, np.float64), np.empty(len(x), np.float64)
        columns = x.size // len(x) if len(x) else 0
        addresses = _address(x), len(x), columns, length_factor(columns), _address(wide), _address(lengths)
        if self.widen_function(*addresses):
            raise IntegrityError(f"{self.path} does not widen {len(x)} rows of {columns} values", hint=REINSTALL)
        return wide, lengths


@dataclass(frozen=True)
class NativeRule:
    """A ``RadiusRule`` that the library carries out where the case is plain."""

    rule: RadiusRule
    native: Native
    denominators: int  # the address of the rule's array, which lives as long as the rule

    def rows(self, logits: Array, norms: Array) -> CertifiedRows:
        """As ``RadiusRule.rows``, bit for bit."""
        rule, count, classes = self.rule, len(logits), logits.shape[1]
        plain = logits.dtype == np.float64 and logits.flags.c_contiguous and norms.flags.c_contiguous
        if not plain or classes != len(rule.denominators):
            return rule.rows(logits, norms)
        out = np.empty((3, count), np.float64)  # one allocation: labels are as wide as radii
        start = _address(out)
        given = _address(logits), _address(norms), self.denominators, count, classes
        constants = rule.slope, rule.offset, rule.ceiling
        if self.native.radii_function(*given, *constants, start + 16 * count, start, start + 8 * count):
            return rule.rows(logits, norms)
        return CertifiedRows(out[2].view(np.int64), out[0], out[1])


@dataclass(frozen=True)
class NativeAnswers:
    """Lengths, margins and radii of a float32 program's rows in one call: what ``widened`` and ``rows`` say in two."""

    native: Native
    rule: NativeRule
    constants: Constants
    address: int

    def rows(self, x: Array, scores: Array, wanted: float) -> tuple[CertifiedRows, Array, int] | None:
        """Certified rows, upper bounds of ‖x‖, and how many radii are below ``wanted`` (zero, where that is 0).

        ``x`` (batch, ...) and ``scores`` (batch, classes) are float32. ``None`` where the case is not plain.
        """
        count = len(x)
        plain = scores.dtype == x.dtype == np.float32 and scores.flags.c_contiguous and x.flags.c_contiguous
        sizes = scores.shape == (count, self.constants.classes) and x.size == count * self.constants.columns
        if not (plain and sizes and count):
            return None
        out = np.empty((4, count), np.float64)  # one allocation: labels are as wide as radii
        given = self.address, _address(x), _address(scores), count, wanted, _address(out)
        unsure = self.native.answers_function(*given)
        if unsure < 0:
            return None
        return CertifiedRows(out[2].view(np.int64), out[0], out[1]), out[3], unsure


def native_of(library: OperatorLibrary | None) -> Native | None:
    """The functions of a library that has them; ``IntegrityError`` when they do not agree with NumPy on probes."""
    if library is None:
        return None
    handle = ctypes.CDLL(library.path)
    names = ("lipdeploy_f64_widen", "lipdeploy_f64_radii", "lipdeploy_f32_answers")
    if not all(hasattr(handle, name) for name in names):
        return None
    widen, radii, answers = (getattr(handle, name) for name in names)
    widen.argtypes = [POINTER, WHOLE, WHOLE, REAL, POINTER, POINTER]
    radii.argtypes = [POINTER, POINTER, POINTER, WHOLE, WHOLE, REAL, REAL, REAL, POINTER, POINTER, POINTER]
    answers.argtypes = [POINTER, POINTER, POINTER, WHOLE, REAL, POINTER]
    widen.restype = radii.restype = ctypes.c_int32
    answers.restype = WHOLE
    native = Native(library.path, widen, radii, answers)
    _check_widening(native)
    return native


def native_rule(rule: RadiusRule | None, native: Native | None) -> RadiusRule | NativeRule | None:
    """``rule``, through the library where it may; ``IntegrityError`` when the two differ in a bit on probes."""
    usable = rule is not None and np.isfinite(rule.denominators).all() and np.isfinite((rule.slope, rule.offset)).all()
    if rule is None or native is None or rule.can_be_constant or len(rule.denominators) < 2 or not usable:
        return rule
    fast = NativeRule(rule, native, rule.denominators.ctypes.data)
    for logits, norms in _probes(rule):
        one, other = rule.rows(logits, norms), fast.rows(logits, norms)
        same = [
            getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("label", "margin", "radius")
        ]
        if not all(same):
            raise IntegrityError(f"{native.path}: its radii are not those of the definition", hint=REINSTALL)
    return fast


def native_answers(rule: RadiusRule | NativeRule | None, columns: int) -> NativeAnswers | None:
    """``rule`` for a float32 program with ``columns`` values in a row; ``IntegrityError`` when it differs on probes."""
    if not isinstance(rule, NativeRule):
        return None
    plain = rule.rule
    sizes = rule.denominators, len(plain.denominators), columns
    constants = Constants(*sizes, length_factor(columns), plain.slope, plain.offset, plain.ceiling)
    fast = NativeAnswers(rule.native, rule, constants, ctypes.addressof(constants))
    random = np.random.default_rng(1)
    for logits, _ in _probes(plain):
        with np.errstate(over="ignore"):
            scores = logits.astype(np.float32)
        scores = scores[np.isfinite(scores).all(axis=1)]
        x = (random.standard_normal((len(scores), columns)) * 10.0 ** random.uniform(-9, 9)).astype(np.float32)
        wanted = random.choice([0.0, 1e-6])
        _compare(fast, x, scores, wanted)
    return fast


def _compare(fast: NativeAnswers, x: Array, scores: Array, wanted: float) -> None:
    if not len(x):
        return
    norms = fast.native.widened(x)[1]
    one, found = fast.rule.rule.rows(scores, norms), fast.rows(x, scores, wanted)
    if found is not None:
        other, lengths, unsure = found
        pairs = (one.label, other.label), (one.margin, other.margin), (one.radius, other.radius), (norms, lengths)
        same = all(a.tobytes() == b.tobytes() for a, b in pairs)
        if same and unsure == np.count_nonzero(~((one.radius > 0.0) & (one.radius >= wanted))):
            return
    raise IntegrityError(f"{fast.native.path}: its radii are not those of the definition", hint=REINSTALL)


def _check_widening(native: Native) -> None:
    random = np.random.default_rng(0)
    for columns in (1, 16, 37):
        x = (random.standard_normal((5, columns)) * 10.0 ** random.uniform(-40, 38, (5, 1))).astype(np.float32)
        wide, lengths = native.widened(x)
        exact = np.sqrt((x.astype(np.longdouble) ** 2).sum(axis=1))
        close = lengths <= input_norm_up(x, "l2", single=True) * (1.0 + 1e-12)
        if not (np.array_equal(wide, x.astype(np.float64)) and np.all(lengths >= exact) and np.all(close)):
            raise IntegrityError(f"{native.path}: the lengths of its rows are wrong", hint=REINSTALL)


def _probes(rule: RadiusRule) -> list[tuple[Array, Array]]:
    """Scores of every size, ties and near ties, NaN and infinities, with norms up to beyond the ceiling."""
    random = np.random.default_rng(0)
    shape = (64, len(rule.denominators))
    plain = random.standard_normal(shape) * 10.0 ** random.uniform(-12, 6, (64, 1))
    ties = np.round(random.standard_normal(shape))
    near = 1.0 + random.integers(-3, 4, shape) * 2.0**-52
    wild = np.where(random.random(shape) < 0.05, random.choice([np.nan, np.inf, -np.inf], shape), plain)
    extreme = random.choice([0.0, -0.0, 5e-324, -5e-324, 1.7e308, -1.7e308, 2.0**-1000], shape)
    norms = np.abs(random.standard_normal(64)) * 10.0 ** random.uniform(-3, 3, 64)
    far = random.choice([0.0, np.nan, np.inf, 1e300, min(rule.ceiling, 1e300)], 64)
    return [(scores, sizes) for scores in (plain, ties, near, wild, extreme) for sizes in (norms, far)]
