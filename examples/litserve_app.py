"""Certified predictions in LitServe: ``MODEL=net.onnx PORT=8000 python litserve_app.py``, then ``POST /predict``."""

import os

import litserve
import numpy as np

from lipdeploy.runtime import CertifiedSession


class Certified(litserve.LitAPI):
    """LitServe merges requests into batches; the session answers row by row."""

    def setup(self, device):
        """Verify: a model that cannot be proven raises here, and the worker never starts."""
        self.session = CertifiedSession(os.environ["MODEL"], certify="adaptive", threads=1, spinning=False)

    def decode_request(self, request):
        """One row per request."""
        return np.array(request["row"], np.float32)

    def predict(self, x):
        """``x`` is one row, or a batch of them."""
        answer = self.session.predict(np.atleast_2d(x), epsilon=0.1)
        rows = zip(answer.label.tolist(), answer.radius.tolist(), answer.certified.tolist(), strict=True)
        found = [{"label": label, "radius": radius, "certified": certified} for label, radius, certified in rows]
        return found if np.ndim(x) == 2 else found[0]

    def encode_response(self, output):
        """Python's floats keep every digit, so that no radius grows."""
        return output


if __name__ == "__main__":
    api = Certified(max_batch_size=32, batch_timeout=0.002)
    litserve.LitServer(api, accelerator="cpu").run(port=int(os.environ.get("PORT", "8000")), generate_client_file=False)
