"""tritonclient's view of a server, as JSON: ``ask_triton.py http|grpc ADDRESS MODEL ROWS.npy EPSILON``."""

import importlib
import json
import sys

import numpy as np
from tritonclient.utils import InferenceServerException


def main() -> None:
    kind, address, model, rows, epsilon = sys.argv[1:]
    library = importlib.import_module(f"tritonclient.{kind}")
    client = library.InferenceServerClient(address)
    x = np.load(rows)
    found = {"live": client.is_server_live(), "ready": client.is_server_ready(), "model": client.is_model_ready(model)}
    found["answers"] = {
        mode: answer(library, client, model, x, epsilon, binary=mode == "binary")
        for mode in (("binary", "json") if kind == "http" else ("raw",))
    }
    found["errors"] = {name: status(library, client, model, bad) for name, bad in mistakes(x).items()}
    json.dump(found, sys.stdout)


def answer(library, client, model, x, epsilon, *, binary):
    words = {"binary_data": binary} if library.__name__.endswith("http") else {}
    names = ("label", "radius", "certified", "abstain", "margin", "logits")
    outputs = [library.InferRequestedOutput(name, **words) for name in names]
    result = client.infer(
        model, [tensor(library, x, **words)], outputs=outputs, request_id="q7",
        parameters={"lipdeploy_epsilon": epsilon},
    )  # fmt: skip
    arrays = {name: result.as_numpy(name) for name in names}
    return {name: {"shape": list(array.shape), "values": array.ravel().tolist()} for name, array in arrays.items()}


def tensor(library, x, name="input", **words):
    datatype = {"float32": "FP32", "float64": "FP64"}[x.dtype.name]
    made = library.InferInput(name, list(x.shape), datatype)
    made.set_data_from_numpy(x, **words)
    return made


def mistakes(x):
    return {
        "wrong shape": {"input": x[:, :-1].copy()},
        "wrong type": {"input": x.astype(np.float64)},
        "not finite": {"input": np.full_like(x, np.nan)},
        "unknown input": {"z": x},
        "unknown model": None,
    }


def status(library, client, model, arrays):
    inputs = [tensor(library, array, name) for name, array in (arrays or {}).items()]
    try:
        client.infer(model if arrays else "nobody", inputs or [tensor(library, np.zeros((1, 1), np.float32))])
    except InferenceServerException as error:
        return str(error.status())
    return "answered"


main()
