"""A verified model that answers in the protocol's outputs inside somebody else's server (Triton, MLServer)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.runtime.inputs import feeds_for
from lipdeploy.runtime.prediction import checked_epsilon
from lipdeploy.serve.columns import Rows
from lipdeploy.serve.metrics import Metrics
from lipdeploy.serve.models import ModelVersion
from lipdeploy.serve.oip import read_parameters
from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.settings import Settings, read_setting

Array = np.ndarray[Any, Any]


#: The settings of a model that is not served by us.
NAMES = ("norm", "max_lipschitz", "certify", "output_name", "epsilon", "threads", "max_batch_rows")


class EmbeddedModel:
    """``CertifiedSession`` with the answers of ``lipdeploy serve``: same outputs, parameters and request checks.

    ``settings`` are those of ``Settings`` (norm, max_lipschitz, certify, output_name, epsilon, threads,
    max_batch_rows), as numbers or text; calls with more than ``max_batch_rows``, or than a file's fixed batch, are
    answered in parts. Everything that can fail does so here, so that the host never calls an unproven model ready.
    Raises as ``CertifiedSession`` does, and ``InputError`` for an unknown setting. Thread-safe.
    """

    def __init__(self, path: str | os.PathLike[str], name: str, version: str = "1", **settings: Any) -> None:
        unknown = set(settings) - set(NAMES)
        if unknown:
            raise InputError(f"unknown settings {sorted(unknown)}", hint=f"there are {', '.join(NAMES)}")
        chosen = Settings(models=(), **{name: read_setting(name, value) for name, value in settings.items()})
        self._epsilon = None if chosen.epsilon is None else checked_epsilon(chosen.epsilon)
        self._model = ModelVersion(name, version, Path(path), chosen, Metrics())
        self.session = self._model.session
        self.inputs = tuple(replace(spec, shape=(None, *spec.shape[1:])) for spec in self._model.inputs)
        self.outputs = self._model.outputs
        self.default_outputs = self._model.default_outputs
        self.parameters: Mapping[str, str] = self._model.parameters
        self.metadata: Mapping[str, Any] = self._model.metadata([version])

    def answer(
        self, arrays: Mapping[str, Any], parameters: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """The outputs ``names`` (default: label, radius, certified, abstain; y) for inputs by name, rows first.

        ``parameters`` are a request's: ``lipdeploy_epsilon``, ``lipdeploy_require_certificate``. Raises ``InputError``
        for inputs that do not fit and ``RequestProblem`` for parameters that do not.
        """
        asked = read_parameters(parameters)
        if asked.get("certificate", self._model.sha256) != self._model.sha256:
            raise RequestProblem(409, f"the certificate is {self._model.sha256}, and the request is pinned to another")
        for name in names or ():
            if name not in self.outputs:
                raise InputError(f"there is no output '{name[:64]}'", hint=f"there are {', '.join(self.outputs)}")
        feeds = feeds_for(arrays, self.inputs)
        rows = len(next(iter(feeds.values())))
        if rows == 0:
            raise InputError("every input must have at least one row")
        epsilon = asked.get("epsilon", self._epsilon)
        most = self._model.rows_at_once
        parts = [
            self._columns({name: array[begin : begin + most] for name, array in feeds.items()}, epsilon)
            for begin in range(0, rows, most)
        ]
        return {name: np.concatenate([part(name) for part in parts]) for name in names or self.default_outputs}

    def _columns(self, feeds: Mapping[str, Array], epsilon: float | None) -> Callable[[str], Array]:
        rows = len(next(iter(feeds.values())))
        result = self._model.program.run(feeds, epsilon)
        if not isinstance(result, Rows):
            return lambda name: result.y[:rows]
        made = {"certified": result.certified(epsilon), "abstain": result.abstain(epsilon)}
        return lambda name: (made[name] if name in made else getattr(result, name))[:rows]
