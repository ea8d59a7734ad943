"""What KServe's own classes make of our manifests, as JSON: ``read_manifest.py FOLDER``.

The classes are generated from the custom resources' schema. Reading is strict: a field they do not know is an error.
"""

import json
import sys
from pathlib import Path

import yaml
from kserve import models
from kubernetes import client

FILES = {
    "serving-runtime.yaml": models.V1alpha1ServingRuntime,
    "inference-service.yaml": models.V1beta1InferenceService,
}


def unknown(value, kind: str, where: str) -> list[str]:
    """Fields of ``value`` that the class named ``kind`` does not have, with their paths."""
    if kind.startswith("list["):
        return [bad for number, part in enumerate(value) for bad in unknown(part, kind[5:-1], f"{where}[{number}]")]
    known = getattr(models, kind, None) or getattr(client, kind, None)
    if known is None or not hasattr(known, "openapi_types") or not isinstance(value, dict):
        return []
    attributes = {key: name for name, key in known.attribute_map.items()}
    return [f"{where}.{key}" for key in value if key not in attributes] + [
        bad
        for key, part in value.items()
        if key in attributes
        for bad in unknown(part, known.openapi_types[attributes[key]], f"{where}.{key}")
    ]


found = {}
for name, kind in FILES.items():
    content = yaml.safe_load((Path(sys.argv[1]) / name).read_text())
    found[name] = {
        "kind": content["kind"],
        "api": content["apiVersion"],
        "unknown": unknown(content, kind.__name__, ""),
    }
json.dump(found, sys.stdout)
