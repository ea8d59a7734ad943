"""Certified predictions in MLServer: ``lipdeploy package mlserver`` writes a folder that names ``CertifiedRuntime``."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    Parameters,
    RequestInput,
    ResponseOutput,
)
from mlserver.utils import get_model_uri

from lipdeploy.errors import LipdeployError
from lipdeploy.serve.embedded import EmbeddedModel
from lipdeploy.serve.oip import arrays_of, is_ours, no_guarantees
from lipdeploy.serve.problems import RequestProblem, of_failure
from lipdeploy.serve.settings import MODEL_FILE


class CertifiedRuntime(MLModel):  # type: ignore[misc]  # mlserver is installed beside its own server only
    """``EmbeddedModel`` as an MLServer runtime; settings come from ``parameters.extra`` of model-settings.json."""

    async def load(self) -> bool:
        """Verify; a model that cannot be proven raises, and MLServer never calls it ready."""
        path = await get_model_uri(self._settings, wellknown_filenames=[MODEL_FILE])
        extra = dict((self._settings.parameters.extra if self._settings.parameters else None) or {})
        version = self.version or "1"
        make = partial(EmbeddedModel, path, self.name, version, **extra)
        self._certified = await asyncio.get_running_loop().run_in_executor(None, make)
        return True

    async def metadata(self) -> MetadataModelResponse:
        """The protocol's metadata, the certificate's digest, norm and bound in its parameters."""
        known = dict(self._certified.metadata)
        known.pop("properties")
        return MetadataModelResponse(**known, parameters=Parameters(**self._certified.parameters))

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Label, radius, certified, abstain (or what was asked for) for every row."""
        own = {name: value for name, value in _named(payload.parameters).items() if is_ours(name)}
        names = [output.name for output in payload.outputs] if payload.outputs else None
        try:
            arrays = arrays_of([_fields(tensor) for tensor in payload.inputs])
            for output in payload.outputs or ():
                no_guarantees(_named(output.parameters), f"output '{output.name}'")
            answer = self._certified.answer(arrays, own, names)
        except (LipdeployError, RequestProblem) as error:
            problem = of_failure(error)
            raise MLServerError(problem.message, problem.status) from error
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            id=payload.id,
            parameters=Parameters(**self._certified.parameters),
            outputs=[self._encoded(name, column) for name, column in answer.items()],
        )

    def _encoded(self, name: str, column: np.ndarray[Any, Any]) -> ResponseOutput:
        """MLServer's own codec would give every output a second axis."""
        datatype, _ = self._certified.outputs[name]
        return ResponseOutput(name=name, shape=list(column.shape), datatype=datatype, data=column.ravel().tolist())


def _named(parameters: Parameters | None) -> dict[str, Any]:
    return dict(parameters.model_dump(exclude_none=True)) if parameters else {}


def _fields(tensor: RequestInput) -> tuple[str, str, list[int], Any]:
    """MLServer's codecs convert as NumPy does, 1.9 to an INT8 1: what is certified must be what was sent."""
    no_guarantees(_named(tensor.parameters), f"input '{tensor.name}'")
    datatype = getattr(tensor.datatype, "value", tensor.datatype)
    return tensor.name, datatype, list(tensor.shape), getattr(tensor.data, "root", tensor.data)
