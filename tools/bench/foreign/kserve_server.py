"""The plain float32 program in KServe's ModelServer: label only. ``kserve_server.py PORT``."""

import os
import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Plain(Model):
    """One session."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(os.environ["BENCH_LIBRARY"])
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        """One run per request."""
        label = self.session.run(None, {"input": payload.inputs[0].as_numpy()})[0].argmax(axis=1)
        output = InferOutput("label", list(label.shape), "INT64")
        output.set_data_from_numpy(label, binary_data=True)
        return InferResponse(payload.id or "", self.name, [output], use_binary_outputs=True)


ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1).start([Plain("model")])
