"""Certified predictions behind the Open Inference Protocol: a plain ASGI app, alone or inside another server.

``create_app`` gives the app; ``Settings`` says everything that can be said to it; ``Service`` is the part that knows
no transport, shared by REST, gRPC and whatever embeds it.
"""

from lipdeploy.serve.asgi import App, create_app
from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.service import Service
from lipdeploy.serve.settings import ModelSource, Settings, model_sources

__all__ = ["App", "ModelSource", "RequestProblem", "Service", "Settings", "create_app", "model_sources"]
