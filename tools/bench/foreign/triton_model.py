"""The plain float32 program in Triton's Python backend: labels; Triton's dynamic batcher merges requests."""

import os
import sys

sys.path[:0] = os.environ["BENCH_SITE"].split(os.pathsep)

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    """One session, one run per call."""

    def initialize(self, args):
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(os.environ["BENCH_LIBRARY"])
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        """One run for all requests of a call."""
        arrays = [backend.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        logits = self.session.run(None, {"input": np.concatenate(arrays)})[0]
        labels = logits.argmax(axis=1)[:, None]
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        return [
            backend.InferenceResponse(output_tensors=[backend.Tensor("label", label)])
            for label in np.split(labels, ends)
        ]
