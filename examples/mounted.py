"""Certified predictions inside an ASGI application of your own: ``MODEL=net.onnx uvicorn mounted:app``.

Written with Starlette; ``fastapi.FastAPI`` takes the same ``lifespan`` and has the same ``mount``. The mounted app
brings its routes with it: ``POST /certified/v2/models/net/infer``, ``GET /certified/v2/health/ready``,
``/certified/metrics``.
"""

import contextlib
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from lipdeploy.serve import create_app

certified = create_app(os.environ["MODEL"], certify="adaptive", epsilon=0.1)


@contextlib.asynccontextmanager
async def lifespan(app):
    """Verify while this application runs."""
    # Starlette does not pass lifespan events on to what it mounts, so we say when to start and when to stop.
    async with certified.running():
        yield


async def hello(request):
    """A page of your own."""
    return JSONResponse({"ready": certified.service.readiness()["ready"]})


app = Starlette(routes=[Route("/", hello), Mount("/certified", certified)], lifespan=lifespan)
