"""Clients that others wrote, against ``lipdeploy serve``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lipdeploy.serve.rpc_messages import MESSAGES, message_class

from .conftest import EPSILON, Check, Ours, environment, program

ALL = ("label", "radius", "certified", "abstain", "margin", "logits")


def test_tritonclient_over_http(ours: Ours, rows: Path, agrees: Check) -> None:
    found = program(environment("client"), "ask_triton.py", "http", ours.http, "net", rows, EPSILON)
    assert found["live"] and found["ready"] and found["model"]
    for mode in ("binary", "json"):
        agrees(found["answers"][mode], ALL)
    expected = {
        "unknown model": "404",
        **dict.fromkeys(("wrong shape", "wrong type", "not finite", "unknown input"), "400"),
    }
    assert found["errors"] == expected


def test_tritonclient_over_grpc(ours: Ours, rows: Path, agrees: Check) -> None:
    found = program(environment("client"), "ask_triton.py", "grpc", ours.grpc, "net", rows, EPSILON)
    assert found["live"] and found["ready"] and found["model"]
    agrees(found["answers"]["raw"], ALL)
    invalid = "StatusCode.INVALID_ARGUMENT"
    wrong = dict.fromkeys(("wrong shape", "wrong type", "not finite", "unknown input"), invalid)
    assert found["errors"] == {"unknown model": "StatusCode.NOT_FOUND", **wrong}


def test_schemathesis_finds_nothing(ours: Ours) -> None:
    """Every check but one: a body may fit the schema and still name a model or an input that does not exist."""
    command = [
        str(environment("client").parent / "schemathesis"), "run", f"http://{ours.http}/openapi.json",
        "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--max-time", "20", "--no-color",
        "--seed", "1", "--warnings", "off",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "module"),
    [("client", "tritonclient.grpc.service_pb2"), ("kserve", "kserve.protocol.grpc.grpc_predict_v2_pb2")],
)
def test_our_messages_are_the_ones_that_others_ship(name: str, module: str) -> None:
    theirs = program(environment(name), "describe_messages.py", module)
    for path in MESSAGES:
        ours = {
            field.name: [field.number, field.type, field.is_repeated]
            for field in message_class(path).DESCRIPTOR.fields
            if (path, field.name) != ("ModelMetadataResponse", "properties")  # the protocol has it, these two do not
        }
        known = theirs[f"inference.{path}"]
        if path == "InferParameter":
            assert ours.items() >= known.items()  # some vendors lack double and uint64
        else:
            assert ours == known, path


def test_kserves_rest_client(ours: Ours, rows: Path, agrees: Check) -> None:
    found = program(environment("kserve"), "ask_kserve.py", f"http://{ours.http}", "net", rows, EPSILON)
    assert found["live"] and found["ready"] and found["model"]
    for mode in ("binary", "json"):
        agrees(found["answers"][mode], ("label", "radius", "certified", "abstain"))
