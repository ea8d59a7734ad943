"""A folder for MLServer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lipdeploy.serve.packages.contents import Contents, Files, together
from lipdeploy.serve.settings import MODEL_FILE

README = """# {name} for MLServer

    pip install mlserver 'lipdeploy[serve]'
    mlserver start .

`CertifiedRuntime` verifies `model.onnx` before the model is ready and answers the Open Inference Protocol with `label`,
`radius`, `certified` and `abstain`. MLServer reads JSON tensors; it refuses the binary extension. Pass the radius that
you need as the request parameter `lipdeploy_epsilon`.
"""


def for_mlserver(given: Contents) -> Files:
    """A folder for ``mlserver start``: one model, one version."""
    model = {
        "name": given.name,
        "implementation": "lipdeploy.serve.mlserver.CertifiedRuntime",
        "parameters": {"uri": f"./{MODEL_FILE}", "version": "1", "extra": dict(given.settings)},
    }
    settings = {"debug": False, "host": "127.0.0.1", "parallel_workers": 0}
    own = {
        "model-settings.json": _json(model),
        "settings.json": _json(settings),
        "README.md": README.format(name=given.name).encode(),
    }
    return together(own, given.model_files())


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
