"""The plain float32 program in MLServer: label only."""

import os

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Plain(MLModel):
    """One session."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(os.environ["BENCH_LIBRARY"])
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One run per request."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        label = self.session.run(None, {"input": x})[0].argmax(axis=1)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("label", label)])
