"""Certified predictions in Triton Inference Server's Python backend: ``lipdeploy package triton`` writes the folder.

``initialize`` verifies; a model that cannot be proven raises there, and Triton reports it UNAVAILABLE with the reason.
Requests of one call that ask for the same ε run as one batch; when that fails, each runs alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.errors import LipdeployError
from lipdeploy.serve.embedded import EmbeddedModel
from lipdeploy.serve.problems import RequestProblem, of_failure
from lipdeploy.serve.settings import MODEL_FILE

Array = np.ndarray[Any, Any]
PROBLEMS = (LipdeployError, RequestProblem)
ROW_OUTPUTS = ("label", "radius", "certified", "abstain", "margin")


class TritonPythonModel:
    """What Triton's Python backend instantiates; ``model.py`` of the package names it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Verify the model of this version with the settings in the configuration's ``parameters``. Names in capitals
        are Triton's own; any other that is no setting fails: with a misspelt limit the gate would be open.
        """
        config = json.loads(args["model_config"])
        given = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = {name: value for name, value in given.items() if not name.isupper()}
        self._model = EmbeddedModel(folder / MODEL_FILE, args["model_name"], args["model_version"], **settings)
        self._batched = int(config.get("max_batch_size", 0)) > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order."""
        read = [_read(request) for request in requests]
        answers: list[Any] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, (_, parameters, _) in enumerate(read):
            groups.setdefault(json.dumps(parameters, sort_keys=True), []).append(number)
        for members in groups.values():
            for number, answer in zip(members, self._together([read[number] for number in members]), strict=True):
                answers[number] = answer
        return [self._response(request, answer) for request, answer in zip(read, answers, strict=True)]

    def _together(self, group: Sequence[tuple[dict[str, Array], dict[str, Any], Sequence[str]]]) -> list[Any]:
        """Answers, or the exceptions in their place, to requests with equal parameters."""
        parameters = group[0][1]
        names = list(self._model.outputs)
        if len(group) > 1 and all(map(_is_even, group)) and len({_form(arrays) for arrays, _, _ in group}) == 1:
            merged = {name: np.concatenate([arrays[name] for arrays, _, _ in group]) for name in group[0][0]}
            ends = np.cumsum([len(next(iter(arrays.values()))) for arrays, _, _ in group])[:-1]
            try:
                answer = self._model.answer(merged, parameters, names)
            except PROBLEMS:
                pass  # one of them spoils it for all: ask each alone
            else:
                parts = {name: np.split(column, ends) for name, column in answer.items()}
                return [{name: column[number] for name, column in parts.items()} for number in range(len(group))]
        return [self._alone(arrays, parameters, names) for arrays, _, names in group]

    def _alone(self, arrays: dict[str, Array], parameters: dict[str, Any], names: Sequence[str]) -> Any:
        try:
            return self._model.answer(arrays, parameters, names)
        except PROBLEMS as problem:
            return problem

    def _response(self, request: tuple[dict[str, Array], dict[str, Any], Sequence[str]], answer: Any) -> Any:
        import triton_python_backend_utils as backend  # exists only inside Triton's stub process

        if isinstance(answer, PROBLEMS):
            error = backend.TritonError(of_failure(answer).message, backend.TritonError.INVALID_ARG)
            return backend.InferenceResponse(output_tensors=[], error=error)
        tensors = [backend.Tensor(name, self._shaped(name, answer[name])) for name in request[2]]
        try:
            return backend.InferenceResponse(output_tensors=tensors, parameters=dict(self._model.parameters))
        except TypeError:  # Triton before 2.55 has no response parameters
            return backend.InferenceResponse(output_tensors=tensors)

    def _shaped(self, name: str, column: Array) -> Array:
        """With Triton's batching every output needs a shape behind the batch axis."""
        row = self._batched and self._model.session.classes and name in ROW_OUTPUTS
        return np.ascontiguousarray(column[:, None] if row else column)


def _read(request: Any) -> tuple[dict[str, Array], dict[str, Any], Sequence[str]]:
    arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    return arrays, json.loads(request.parameters() or "{}"), request.requested_output_names()


def _is_even(member: tuple[dict[str, Array], dict[str, Any], Sequence[str]]) -> bool:
    """Whether all inputs of a request have the same number of rows: else the others' rows would move against it."""
    return len({array.shape[:1] for array in member[0].values()}) == 1


def _form(arrays: Mapping[str, Array]) -> tuple[Any, ...]:
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in arrays.items()))
