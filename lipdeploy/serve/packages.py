"""Folders that other servers load: the verified bytes, their certificate, and the host's own configuration.

A package is written whole or not at all, and only for a model that verifies within its limit.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lipdeploy.errors import InputError
from lipdeploy.ops import DOMAIN
from lipdeploy.serve.settings import MODEL_FILE, MODEL_NAME
from lipdeploy.verify import Verdict, certificate, read_certified, verify_source, version
from lipdeploy.verify.rounding import shortest_down, shortest_up
from lipdeploy.verify.source import Source

CERTIFICATE_FILE = certificate.certificate_path(MODEL_FILE).name
Files = dict[str, bytes]
#: What external data may end in: a model chooses these names, and beside the host's files some are code.
INERT = frozenset(("", ".bias", ".bin", ".data", ".onnx_data", ".raw", ".tensor", ".weight", ".weights"))


@dataclass(frozen=True)
class Contents:
    """What a package is made from: the verified model, and what was asked about its predictions.

    ``settings`` are those of ``EmbeddedModel`` that were given: norm, max_lipschitz, certify, output_name, epsilon.
    """

    name: str
    source: Source
    verdict: Verdict
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings_as_text(self) -> dict[str, str]:
        """In digits that are read back as the same numbers: limits are rounded down there, radii up."""
        written = {"max_lipschitz": shortest_up, "epsilon": shortest_down}
        return {key: written.get(key, str)(value) for key, value in self.settings.items()}

    @property
    def classes(self) -> bool:
        """Whether the model answers with labels and radii."""
        return self.verdict.class_bounds is not None

    @property
    def has_own_operators(self) -> bool:
        """Whether the host needs the operator library (or the slower function bodies)."""
        return any(node.domain == DOMAIN for node in self.source.proto.graph.node)

    def model_files(self, folder: str = "") -> Files:
        """Model, external data and certificate, unchanged, under ``folder``."""
        text = certificate.dumps(certificate.document(self.verdict, version()))
        external = {str(PurePosixPath(name)): content for name, content in self.source.external.items()}
        for name in external:
            if PurePosixPath(name).suffix.lower() not in INERT or name.endswith("."):  # which Windows would drop
                raise InputError(
                    f"external data '{name}': the host of the package could take it for code or configuration",
                    hint=f"keep weights in {MODEL_FILE}.data, as lipdeploy export does",
                )
        files = together({MODEL_FILE: self.source.model_bytes, CERTIFICATE_FILE: text.encode()}, external)
        return {str(PurePosixPath(folder) / name): content for name, content in files.items()}


def together(*parts: Files) -> Files:
    """All files of a package. Raises ``InputError`` where two have one name: a model names its external data itself."""
    files: Files = {}
    for part in parts:
        twice = sorted(files.keys() & part.keys())
        if twice:
            raise InputError(f"external data '{twice[0]}' has a name that the package needs", hint="export it again")
        files.update(part)
    return files


def contents(model: str | os.PathLike[str], name: str | None = None, **settings: Any) -> Contents:
    """Read and verify ``model`` once. Raises as ``CertifiedSession`` does, and ``InputError`` for an unusable name."""
    chosen = Path(model).stem if name is None else name
    if not MODEL_NAME.fullmatch(chosen):
        raise InputError(f"'{chosen}' cannot be a model's name in a URL", hint="--name with letters, digits, _ - .")
    source = read_certified(model)
    verdict = verify_source(
        source,
        norm=settings.get("norm", "l2"),
        max_lipschitz=settings.get("max_lipschitz"),
        output_name=settings.get("output_name"),
        check_certificate=True,
        method="best",
    )
    verdict.raise_for_status()
    return Contents(chosen, source, verdict, {key: value for key, value in settings.items() if value is not None})


def write(files: Files, folder: str | os.PathLike[str]) -> None:
    """Write ``files`` into a new ``folder``. Raises ``InputError`` where that is impossible, or it is not empty."""
    target = Path(folder)
    temporary = None
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target}: exists, and is not an empty folder", hint="choose a new one with -o")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        temporary.chmod(0o755)  # mkdtemp's folder is its owner's only, and the server is somebody else
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


# MLServer.

MLSERVER_README = """# {name} for MLServer

    pip install mlserver 'lipdeploy[serve]'
    mlserver start .

`CertifiedRuntime` verifies `model.onnx` before the model is ready and answers the Open Inference Protocol with `label`,
`radius`, `certified` and `abstain`. MLServer reads JSON tensors; it refuses the binary extension. Pass the radius that
you need as the request parameter `lipdeploy_epsilon`.
"""


def mlserver(given: Contents) -> Files:
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
        "README.md": MLSERVER_README.format(name=given.name).encode(),
    }
    return together(own, given.model_files())


# KServe.

OPTIONS = {"output_name": "graph_output"}  # of the command line, where they have another name
KSERVE_RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: lipdeploy
  annotations:
    prometheus.kserve.io/port: "8080"
    prometheus.kserve.io/path: /metrics
spec:
  supportedModelFormats:
    - name: lipdeploy
      version: "1"
      autoSelect: true
  protocolVersions:
    - v2
  containers:
    - name: kserve-container
      image: {image}
      args:
        - serve
        - --host=0.0.0.0
        - --port=8080
        - --name={{{{.Name}}}}
{arguments}        - /mnt/models/model.onnx
      ports:
        - containerPort: 8080
          protocol: TCP
      livenessProbe:
        httpGet:
          path: /v2/health/live
          port: 8080
      readinessProbe:
        httpGet:
          path: /v2/health/ready
          port: 8080
        periodSeconds: 5
      securityContext:
        allowPrivilegeEscalation: false
        runAsNonRoot: true
      resources:
        requests:
          cpu: "1"
          memory: 1Gi
        limits:
          cpu: "1"
          memory: 2Gi
"""
KSERVE_SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 3
    model:
      runtime: lipdeploy
      protocolVersion: v2
      modelFormat:
        name: lipdeploy
        version: "1"
      storageUri: {storage}
"""
DOCKERFILE = """\
# Build a wheel first (`make wheel`), and copy it beside this file.
FROM python:3.11-slim
COPY lipdeploy-*.whl /tmp/
RUN wheel=$(ls /tmp/lipdeploy-*.whl) && pip install --no-cache-dir "$wheel[serve,grpc]" && rm "$wheel"
USER 1000
ENTRYPOINT ["lipdeploy"]
"""
KSERVE_README = """# {name} for KServe

1. Build and push the image `{image}` from `Dockerfile`.
2. Put the folder `model` where `storageUri` of `inference-service.yaml` points ({storage}).
3. `kubectl apply -f serving-runtime.yaml -f inference-service.yaml`

A replica answers `ready` only after it has verified `model.onnx` itself. The server listens on every address of its pod
and asks for no key: leave the door to the mesh or the gateway, or add `--api-key-file`.
"""


def kserve(given: Contents, image: str, storage: str) -> Files:
    """Manifests for KServe, a Dockerfile, and the folder ``model`` to be put at ``storage``."""
    flags = [f"--{OPTIONS.get(key, key).replace('_', '-')}={value}" for key, value in given.settings_as_text.items()]
    arguments = "".join(f"        - {json.dumps(flag)}\n" for flag in flags)
    name = given.name.lower().replace("_", "-").replace(".", "-").strip("-") or "model"
    own = {
        "serving-runtime.yaml": KSERVE_RUNTIME.format(image=json.dumps(image), arguments=arguments).encode(),
        "inference-service.yaml": KSERVE_SERVICE.format(name=json.dumps(name), storage=json.dumps(storage)).encode(),
        "Dockerfile": DOCKERFILE.encode(),
        "README.md": KSERVE_README.format(name=given.name, image=image, storage=storage).encode(),
    }
    return together(own, given.model_files("model"))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# Triton: its configuration is long enough for a module of its own.


def triton(given: Contents, backend: str, *, mount: str, batching: bool, library: Callable[[], Path | None]) -> Files:
    """A model repository for Triton Inference Server. ``backend`` is ``"python"`` or ``"onnxruntime"``."""
    from lipdeploy.serve import triton_repository

    if backend == "python":
        return triton_repository.certified(given, batching=batching)
    return triton_repository.logits_only(given, mount=mount, batching=batching, library=library)
