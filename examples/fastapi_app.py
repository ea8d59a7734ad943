"""Certified predictions beside routes of your own in FastAPI: ``MODEL=net.onnx uvicorn fastapi_app:app``.

``POST /score`` answers in your own format; the Open Inference Protocol is mounted at ``/certified`` as well.
"""

import contextlib
import os

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from lipdeploy.errors import InputError
from lipdeploy.runtime import CertifiedSession
from lipdeploy.serve import create_app

certified = create_app(os.environ["MODEL"], certify="adaptive")
session = CertifiedSession(os.environ["MODEL"], certify="adaptive", threads=1, spinning=False)


@contextlib.asynccontextmanager
async def lifespan(app):
    """FastAPI does not pass lifespan events on to what it mounts, so we say when to start and when to stop."""
    async with certified.running():
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/certified", certified)


class Rows(BaseModel):
    """A batch, and the radius that the caller needs."""

    rows: list[list[float]]
    epsilon: float = 0.1


@app.post("/score")
def score(given: Rows) -> dict:
    """Labels; ``null`` where the answer is not certified for this radius. FastAPI runs a plain ``def`` on a thread."""
    try:
        # The ball is around the float32 numbers that the program receives.
        answer = session.predict(np.array(given.rows, np.float32), epsilon=given.epsilon)
    except InputError as problem:
        return {"error": problem.message}
    labels = zip(answer.label.tolist(), answer.certified.tolist(), strict=True)
    return {"labels": [label if sure else None for label, sure in labels]}
