"""The certificate file ``model.cert.json``: written from a verdict, and never believed.

Verification proves everything again; a certificate only fails it, when its digests do not match the files or when it
claims less than what is proven now. Stated numbers carry 1e-9 relative head-room, because proofs differ in their last
digits between machines.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lipdeploy.errors import InputError, IntegrityError
from lipdeploy.verify import strict_json
from lipdeploy.verify.assumptions import are_listed
from lipdeploy.verify.atomic import write_atomically
from lipdeploy.verify.rounding import decimal_up, mul_up, up
from lipdeploy.verify.source import read_file
from lipdeploy.verify.verdict import ErrorBound, Verdict

SCHEMA = "lipdeploy/certificate/v1"
HEAD_ROOM = up(1.0 + 1e-9)
SAME = 1 + Fraction(1, 10**15)  # 17 decimal digits, rounded up, against the hexadecimal number
Document = dict[str, Any]
LARGEST = 2**30
SHOWN = 3  # keys, in a message
DECIMAL = re.compile(r"\d{1,400}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{64}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
HEXADECIMAL = re.compile(r"0x[01](\.[0-9a-f]{1,13})?p[+-]\d{1,4}", re.ASCII)

KEYS: Mapping[str, frozenset[str]] = {
    "": frozenset({"schema", "model", "ops", "statement", "nodes", "assumptions", "verifier"}),
    "model": frozenset({"file_sha256", "semantic_sha256", "external"}),
    "statement": frozenset({"norm", "output", "lipschitz_bound", "lipschitz_bound_hex", "pairwise", "numeric_error"}),
    "verifier": frozenset({"version", "time"}),
}
NODE_KEYS = frozenset({"name", "op", "gain", "bound_after", "rule", "hints"})
SERVING = frozenset({"f32", "f64"})  # programs that a statement must cover; older ones list no others
ERROR_KEYS = frozenset({"c0", "c1", "x_max"})


def certificate_path(model: str | os.PathLike[str]) -> Path:
    """Where the certificate of a model file lies: beside it, same stem."""
    return beside(model, ".cert.json")


def beside(model: str | os.PathLike[str], suffix: str) -> Path:
    """The path of a model file with another ``suffix``; ``InputError`` for ``.`` and ``/``, which have no name."""
    path = Path(model)
    if not path.name:
        raise InputError(f"{model}: a folder, not a model file", hint="name the .onnx file")
    return path.with_suffix(suffix)


def is_there(path: Path) -> bool:
    """Whether anything lies at ``path``, a link to nowhere included; in doubt there does, and reading it says more."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG or _is_listed(path)
    return True


def _is_listed(path: Path) -> bool:
    """Whether the folder has an entry of that name, which may be too long to ask for."""
    try:
        return path.name in os.listdir(path.parent)
    except OSError:
        return True


def stated(value: float) -> float:
    """A proven number with head-room."""
    return mul_up(value, HEAD_ROOM) if math.isfinite(value) else value


def document(verdict: Verdict, version: str) -> Document:
    """The certificate of a verified (or exceeded) verdict."""
    if verdict.lipschitz_bound is None or verdict.output is None:
        raise InputError(f"{verdict.path}: nothing was proven, so there is nothing to certify")
    bound = stated(verdict.lipschitz_bound.value)
    pairwise = None if verdict.pairwise is None else [[stated(float(v)) for v in row] for row in verdict.pairwise]
    return {
        "schema": SCHEMA,
        "model": {
            "file_sha256": verdict.file_sha256,
            "semantic_sha256": verdict.semantic_sha256,
            "external": dict(sorted(verdict.external_sha256.items())),
        },
        "ops": dict(sorted(verdict.operators.items())),
        "statement": {
            "norm": verdict.norm,
            "output": verdict.output.name,
            "lipschitz_bound": decimal_up(bound, 17),
            "lipschitz_bound_hex": bound.hex(),
            "pairwise": pairwise,
            "numeric_error": {mode: _error(error) for mode, error in sorted(verdict.numeric_error.items())},
        },
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "gain": stated(node.gain.value) if node.gain.is_finite else None,
                "bound_after": stated(node.bound_after.value) if node.bound_after.is_finite else None,
                "rule": node.rule,
                "hints": dict(node.hints),
            }
            for node in verdict.nodes
        ],
        "assumptions": list(verdict.assumptions),
        "verifier": {"version": version, "time": _time()},
    }


def _error(error: ErrorBound | None) -> dict[str, float | None] | None:
    if error is None:
        return None
    x_max = error.x_max / HEAD_ROOM if math.isfinite(error.x_max) else None
    return {"c0": stated(error.c0), "c1": stated(error.c1), "x_max": x_max}


def _time() -> str | None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return None
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(content: Document) -> str:
    """The certificate's text: deterministic, one key per line."""
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write(verdict: Verdict, path: str | os.PathLike[str], version: str) -> None:
    """Write the certificate of ``verdict`` (temporary file, then rename)."""
    write_atomically(Path(path), dumps(document(verdict, version)).encode())


def read(path: Path) -> Document:
    """The certificate at ``path``. Raises ``IntegrityError`` as ``parse`` does."""
    return parse(path, read_bytes(path))


def parse(path: Path, stored: bytes) -> Document:
    """Parse a certificate strictly: UTF-8, the known keys, each once and of its type. Raises ``IntegrityError``."""
    try:
        content = strict_json.parse(stored)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: unreadable certificate: {error}", hint="write it again") from error
    _check_shape(path, content)
    return content  # type: ignore[no-any-return]


def read_bytes(path: Path) -> bytes:
    """A certificate as it is stored. Raises ``IntegrityError``."""
    try:
        return read_file(path, LARGEST)
    except InputError as error:
        raise IntegrityError(f"{path}: unreadable certificate: {error}", hint="write it again") from error


def _check_shape(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise IntegrityError(f"{path}: not a certificate of schema {SCHEMA}", hint="write it again")
    parts = [("", content), *((key, content.get(key)) for key in ("model", "statement", "verifier"))]
    for name, part in parts:
        if not isinstance(part, dict) or set(part) != KEYS[name]:
            found = sorted(set(part) ^ KEYS[name])[:SHOWN] if isinstance(part, dict) else []
            raise IntegrityError(f"{path}: unknown or missing keys in '{name or 'certificate'}': {found}")
    nodes = content["nodes"]
    if not isinstance(nodes, list) or any(not isinstance(n, dict) or set(n) != NODE_KEYS for n in nodes):
        raise IntegrityError(f"{path}: 'nodes' is not a list of nodes with keys {sorted(NODE_KEYS)}")
    for what, fits in _types(content):
        if not fits:
            raise IntegrityError(f"{path}: malformed certificate: {what}", hint="write it again")


def _types(content: Document) -> Iterator[tuple[str, bool]]:
    """(what a part has to be, whether it is), for all but the numbers, which are compared."""
    model, statement, verifier, nodes = (content[key] for key in ("model", "statement", "verifier", "nodes"))
    digests, ops, time = model["external"], content["ops"], verifier["time"]
    yield (
        "a digest is not 64 hexadecimal digits",
        isinstance(digests, dict)
        and all(
            _matches(DIGEST, digest) for digest in (model["file_sha256"], model["semantic_sha256"], *digests.values())
        ),
    )
    yield (
        "'ops' does not map names to whole numbers",
        isinstance(ops, dict) and all(type(number) is int and number >= 1 for number in ops.values()),
    )
    yield "'norm' and 'output' are not text", _is_text(statement["norm"], statement["output"])
    yield "a node's name, op or rule is not text", all(_is_text(n["name"], n["op"], n["rule"]) for n in nodes)
    yield "a node's hints are not an object", all(isinstance(node["hints"], dict) for node in nodes)
    yield (
        "'assumptions' is not a list of texts",
        isinstance(content["assumptions"], list) and _is_text(*content["assumptions"]),
    )
    yield "the verifier's version is not text", _is_text(verifier["version"])
    yield "the verifier's time is no instant", time is None or _matches(INSTANT, time)


def _is_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def check_files(path: Path, content: Document, file_sha256: str, external_sha256: Mapping[str, str]) -> None:
    """Compare a certificate with the digests of what was read. Raises ``IntegrityError`` where it is about other bytes.

    Files that it names and nobody read are left to ``check``.
    """
    if content["model"]["file_sha256"] != file_sha256:
        raise _other_bytes(path, "file_sha256")
    for name, digest in external_sha256.items():
        if content["model"]["external"].get(name) != digest:
            raise _other_bytes(path, f"external file '{name}'")


def _other_bytes(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: the certificate is about other bytes ({what} differs)",
        hint="the model was changed after it was certified; export or certify it again",
    )


def check(path: Path, content: Document, verdict_in: Callable[[str, str], Verdict]) -> None:
    """Compare a certificate with what is proven now, after ``check_files``. Raises ``IntegrityError``.

    ``verdict_in(norm, output)`` verifies the same bytes for the certificate's own statement.
    """
    statement = content["statement"]
    now = verdict_in(statement["norm"], statement["output"])
    if content["model"]["external"] != dict(now.external_sha256):
        raise _other_bytes(path, "external")
    if content["model"]["semantic_sha256"] != now.semantic_sha256:
        raise _other_bytes(path, "semantic_sha256")
    if content["ops"] != dict(now.operators):
        raise IntegrityError(f"{path}: 'ops' is {content['ops']}, for this model it must be {dict(now.operators)}")
    if not are_listed(content["assumptions"]):
        raise IntegrityError(f"{path}: 'assumptions' is {content['assumptions']}, it must be {list(now.assumptions)}")
    for name, claimed, proven in _claims(path, content, now):
        if not claimed >= proven:
            raise IntegrityError(
                f"{path}: claims {name} ≤ {float(claimed):.9g}, but only {proven:.9g} is proven",
                hint="the certificate was edited, or made by another verifier; write it again",
            )


def _claims(path: Path, content: Document, now: Verdict) -> Iterator[tuple[str, Fraction | float, float]]:
    """(name, what the certificate claims, what is proven) for every number it states."""
    statement = content["statement"]
    assert now.lipschitz_bound is not None
    bound = now.lipschitz_bound.value
    try:
        decimal, exact = _decimal(statement["lipschitz_bound"]), _hexadecimal(statement["lipschitz_bound_hex"])
        if not Fraction(exact) <= decimal <= Fraction(exact) * SAME:
            raise ValueError("lipschitz_bound and lipschitz_bound_hex are not one number")
        yield "lipschitz_bound", decimal, bound
        yield "lipschitz_bound_hex", exact, bound
        yield from _pair_claims(statement["pairwise"], now)
        yield from _error_claims(statement["numeric_error"], now)
        listed = [(node["name"], node["op"], node["rule"]) for node in content["nodes"]]
        if listed != [(node.name, node.op, node.rule) for node in now.nodes]:
            raise ValueError("the list of nodes differs")
        for claimed, node in zip(content["nodes"], now.nodes, strict=True):
            for key, proven in (("gain", node.gain), ("bound_after", node.bound_after)):
                yield f"{key} of '{node.name}'", number_or_null(claimed[key]), proven.value
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise IntegrityError(f"{path}: malformed statement: {error}", hint="write it again") from error


def _pair_claims(pairwise: Any, now: Verdict) -> Iterator[tuple[str, float, float]]:
    if (pairwise is None) != (now.pairwise is None):
        raise ValueError("pairwise bounds do not belong to this output")
    if pairwise is None or now.pairwise is None:
        return
    claimed = _matrix(pairwise, len(now.pairwise))
    low = np.argwhere(~(claimed >= now.pairwise))
    for i, j in low[:1].tolist():  # a million claims that hold need not be listed
        yield f"pairwise[{i}][{j}]", float(claimed[i, j]), float(now.pairwise[i, j])


def _matrix(rows: Any, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``size`` lists of ``size`` numbers; a truth value is no number, nor is what a float64 cannot hold."""
    if not isinstance(rows, list) or len(rows) != size or any(not isinstance(r, list) or len(r) != size for r in rows):
        raise ValueError("pairwise is not a square matrix of the classes")
    if any(not set(map(type, row)) <= {int, float} for row in rows):
        raise ValueError("pairwise holds what is not a number")
    matrix = np.array(rows, np.float64)
    if not np.all(np.isfinite(matrix)):
        raise ValueError("a stated number is infinite")
    return matrix


def _error_claims(errors: Any, now: Verdict) -> Iterator[tuple[str, float, float]]:
    if not isinstance(errors, dict) or not SERVING <= set(errors) <= set(now.numeric_error):
        raise ValueError("numeric_error does not list the programs")
    for mode, claimed in errors.items():
        proven = now.numeric_error[mode]
        if claimed is None:
            continue
        if proven is None or not isinstance(claimed, dict) or set(claimed) != ERROR_KEYS:
            raise ValueError(f"numeric_error of {mode} is not proven, or has other keys")
        yield f"c0 of {mode}", number(claimed["c0"]), proven.c0
        yield f"c1 of {mode}", number(claimed["c1"]), proven.c1
        yield f"1/x_max of {mode}", 1.0 / number_or_null(claimed["x_max"]), 1.0 / proven.x_max


def _decimal(text: Any) -> Fraction:
    if not isinstance(text, str) or not DECIMAL.fullmatch(text):
        raise ValueError(f"lipschitz_bound is not a decimal string: {text!r}")
    return Fraction(text)


def _hexadecimal(text: Any) -> float:
    if not isinstance(text, str) or not HEXADECIMAL.fullmatch(text):
        raise ValueError(f"lipschitz_bound_hex is not a C99 hexadecimal number: {text!r}")
    return float.fromhex(text)


def number_or_null(value: Any) -> float:
    """A stated number; infinite for null, which claims nothing or, in ``x_max``, everything."""
    return math.inf if value is None else number(value)


def number(value: Any) -> float:
    """A stated number. Raises ``ValueError`` for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    return _finite(float(value))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a stated number is infinite")
    return value
