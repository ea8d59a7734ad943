"""Manifests for KServe."""

from __future__ import annotations

import json

from lipdeploy.serve.packages.contents import Contents, Files, together

OPTIONS = {"output_name": "graph_output"}  # of the command line, where they have another name
RUNTIME = """\
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
SERVICE = """\
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
README = """# {name} for KServe

1. Build and push the image `{image}` from `Dockerfile`.
2. Put the folder `model` where `storageUri` of `inference-service.yaml` points ({storage}).
3. `kubectl apply -f serving-runtime.yaml -f inference-service.yaml`

A replica answers `ready` only after it has verified `model.onnx` itself. The server listens on every address of its pod
and asks for no key: leave the door to the mesh or the gateway, or add `--api-key-file`.
"""


def for_kserve(given: Contents, image: str, storage: str) -> Files:
    """Manifests for KServe, a Dockerfile, and the folder ``model`` to be put at ``storage``."""
    flags = [f"--{OPTIONS.get(key, key).replace('_', '-')}={value}" for key, value in given.settings_as_text.items()]
    arguments = "".join(f"        - {json.dumps(flag)}\n" for flag in flags)
    name = given.name.lower().replace("_", "-").replace(".", "-").strip("-") or "model"
    own = {
        "serving-runtime.yaml": RUNTIME.format(image=json.dumps(image), arguments=arguments).encode(),
        "inference-service.yaml": SERVICE.format(name=json.dumps(name), storage=json.dumps(storage)).encode(),
        "Dockerfile": DOCKERFILE.encode(),
        "README.md": README.format(name=given.name, image=image, storage=storage).encode(),
    }
    return together(own, given.model_files("model"))
