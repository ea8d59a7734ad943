"""A batch of answers as wire types: what the outputs of a model are called, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from lipdeploy.runtime import CertifiedPrediction
from lipdeploy.verify.radius import float32_down

Array = np.ndarray[Any, Any]

LARGEST = np.finfo(np.float32).max
DEFAULT_OUTPUTS = ("label", "radius", "certified", "abstain")
CLASS_OUTPUTS: Mapping[str, str] = {
    "label": "INT64",
    "radius": "FP32",
    "certified": "BOOL",
    "abstain": "BOOL",
    "margin": "FP32",
    "logits": "FP64",
}


class Rows:
    """A batch of certified predictions as wire types; each column is made when someone asks for it.

    ``label`` INT64, ``radius`` and ``margin`` FP32 (never above the certified number; an unbounded radius is the
    largest finite one), ``logits`` FP64 as the answering program computed them.
    """

    def __init__(self, prediction: CertifiedPrediction) -> None:
        self._prediction = prediction
        self.exact_radius = prediction.radius
        self._certified: tuple[float | None, Array, Array] | None = None

    def certified(self, epsilon: float | None) -> Array:
        """(batch,) bool: radius > 0 and ≥ ``epsilon``, from the float64 radius, before it is rounded for the wire."""
        if self._certified is None or self._certified[0] != epsilon:
            certified = self.exact_radius >= epsilon if epsilon else self.exact_radius > 0.0
            self._certified = epsilon, certified, ~certified
        return self._certified[1]

    def abstain(self, epsilon: float | None) -> Array:
        """(batch,) bool: the rows that are not certified."""
        self.certified(epsilon)
        assert self._certified is not None
        return self._certified[2]

    @cached_property
    def label(self) -> Array:
        """(batch,) int64."""
        return self._prediction.label

    @cached_property
    def radius(self) -> Array:
        """(batch,) float32."""
        return _finite(float32_down(self.exact_radius))

    @cached_property
    def margin(self) -> Array:
        """(batch,) float32."""
        return _finite(float32_down(self._prediction.margin))

    @cached_property
    def logits(self) -> Array:
        """(batch, classes) float64."""
        return self._prediction.logits


class Values:
    """A batch of outputs of a model that does not classify: ``y`` as the stored program computed it."""

    def __init__(self, y: Array) -> None:
        self.y = y


def _finite(values: Array) -> Array:
    finite: Array = np.minimum(values, LARGEST)
    return finite
