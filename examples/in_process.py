"""The server's queue without the server: ``python in_process.py net.onnx``.

Coroutines of one process ask for single rows; the service puts what comes together into one batch, checks every
request, counts it, and answers with the certificate's name. Nothing is listened to.
"""

import asyncio
import sys

import numpy as np

from lipdeploy.serve import Service, Settings, model_sources, oip


async def main(path):
    """Twenty rows, asked for one by one."""
    (source,) = model_sources([path])
    service = Service(Settings(models=(source,), certify="adaptive", threads=1))
    await service.start()  # verified, or not: see service.readiness()
    model = service.repository.model(source.name, None)
    (spec,) = model.inputs
    random = np.random.default_rng(0)

    async def one():
        row = random.standard_normal([1, *spec.shape[1:]]).astype(spec.dtype)
        tensor = oip.Tensor(spec.name, oip.datatype_of(spec.dtype), row.shape, row)
        answer = await service.infer(source.name, None, oip.InferenceRequest((tensor,), epsilon=0.01))
        return {name: values[0] for name, _, values in answer.outputs}

    answers = await asyncio.gather(*(one() for _ in range(20)))
    await service.stop()
    print(f"{sum(bool(answer['certified']) for answer in answers)} of {len(answers)} rows certified at 0.01")
    print(f"{model.counts.batches} batches, certificate {model.sha256[:12]}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
