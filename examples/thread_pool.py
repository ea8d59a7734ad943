"""One ``CertifiedSession`` shared by a thread pool: ``python thread_pool.py net.onnx``.

A session is safe to share, and ONNX Runtime releases the interpreter while it computes, so threads run side by side.
Each session call gets one thread of its own; the pool decides how many calls there are at a time.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lipdeploy import CertifiedSession


def certify_all(session, batches, epsilon):
    """The predictions of every batch, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda batch: session.predict(batch, epsilon=epsilon), batches))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    session = CertifiedSession(sys.argv[1], certify="adaptive", threads=1)
    shape = [32 if size is None else size for size in session.inputs[0].shape]
    random = np.random.default_rng(0)
    batches = [random.standard_normal(shape).astype(session.inputs[0].dtype) for _ in range(8)]
    predictions = certify_all(session, batches, epsilon=0.01)
    certified = sum(int(prediction.certified.sum()) for prediction in predictions)
    print(f"{certified} of {sum(map(len, predictions))} rows certified at 0.01")
