"""KServe's REST client: ``ask_kserve.py URL MODEL ROWS.npy EPSILON``, JSON on standard output."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig


async def main() -> None:
    url, model, rows, epsilon = sys.argv[1:]
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    x = np.load(rows)
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model": await client.is_model_ready(url, model),
        "answers": {},
    }
    for mode in ("binary", "json"):
        given = InferInput("input", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=mode == "binary")
        request = InferRequest(
            model, [given], request_id="q7", parameters={"lipdeploy_epsilon": epsilon},
            request_outputs=None,
        )  # fmt: skip
        response = await client.infer(url, request, model_name=model)
        found["answers"][mode] = {output.name: describe(output) for output in response.outputs}
    json.dump(found, sys.stdout)


def describe(output: InferOutput) -> dict:
    array = output.as_numpy()
    return {"shape": list(array.shape), "values": array.ravel().tolist()}


asyncio.run(main())
