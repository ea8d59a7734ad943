"""The certificate beside a model: what it round-trips, and every edit that must be noticed (exit 4, never a crash)."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from lipdeploy.cli import schema
from lipdeploy.verify import certificate, verify
from lipdeploy.verify.assumptions import EARLIER
from tests.verify.models import model

TEXT = """g (float[N, 2] x) => (float[N, 3] y) <float[2, 4] W = {1, 2, 3, 4, -5, 6, 7, 8}, float[4, 3] V = {1,
  0, 0, 0, 2, 0, 0, 0, 3, 1, 1, 1}>
{ h = MatMul(x, W) a = Relu(h) y = MatMul(a, V) }"""  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "model.onnx"
    onnx.save(model(TEXT), target)
    verify(target).write_certificate(target.with_suffix(".cert.json"))
    return target


def beside(path: Path) -> Path:
    return path.with_suffix(".cert.json")


def edited(path: Path, *keys: Any, value: Any) -> None:
    content = json.loads(beside(path).read_text())
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    beside(path).write_text(json.dumps(content))


def status(path: Path) -> str:
    verdict = verify(path)
    if verdict.status == "integrity":
        assert verdict.refusals[0].code == "LIP022"
        assert verdict.refusals[0].message
        assert verdict.refusals[0].hint
    return verdict.status


def test_round_trip(path: Path) -> None:
    verdict = verify(path)
    assert verdict.status == "verified"
    content = json.loads(beside(path).read_text())
    assert content["schema"] == "lipdeploy/certificate/v1"
    statement = content["statement"]
    assert verdict.lipschitz_bound is not None and verdict.pairwise is not None
    proven = Fraction(verdict.lipschitz_bound.value)
    for claimed in (Fraction(statement["lipschitz_bound"]), Fraction(float.fromhex(statement["lipschitz_bound_hex"]))):
        assert proven <= claimed <= proven * (1 + Fraction(1, 10**8))
    assert Fraction(statement["lipschitz_bound"]) >= Fraction(float.fromhex(statement["lipschitz_bound_hex"]))
    for row, claims in zip(verdict.pairwise.tolist(), statement["pairwise"], strict=True):
        assert all(value <= claim for value, claim in zip(row, claims, strict=True))
    for mode in ("f32", "f64"):
        error, claim = verdict.numeric_error[mode], statement["numeric_error"][mode]
        assert error is not None
        assert error.c0 <= claim["c0"] and error.c1 <= claim["c1"] and error.x_max >= claim["x_max"]


def test_the_same_model_gives_the_same_bytes(path: Path) -> None:
    first = beside(path).read_bytes()
    verify(path, check_certificate=False).write_certificate(beside(path))
    assert beside(path).read_bytes() == first
    assert b"\r" not in first and first.endswith(b"\n")


def test_a_certificate_of_another_norm_is_checked_in_its_own(path: Path) -> None:
    verify(path, norm="linf").write_certificate(beside(path))
    assert status(path) == "verified"
    edited(path, "statement", "norm", value="l2")
    assert status(path) in {"verified", "integrity"}


LOWER: dict[str, tuple[Any, ...]] = {
    "decimal": ("statement", "lipschitz_bound", "1"),
    "hex": ("statement", "lipschitz_bound_hex", "0x1p0"),
    "pair": ("statement", "pairwise", 0, 1, 0.0),
    "c0": ("statement", "numeric_error", "f32", "c0", 0.0),
    "c1": ("statement", "numeric_error", "f64", "c1", 0.0),
    "negative c1": ("statement", "numeric_error", "f64", "c1", -1.0),
    "x_max": ("statement", "numeric_error", "f32", "x_max", 1e38),
    "no x_max": ("statement", "numeric_error", "f32", "x_max", None),
    "zero x_max": ("statement", "numeric_error", "f32", "x_max", 0),
    "negative x_max": ("statement", "numeric_error", "f32", "x_max", -1.0),
    "gain": ("nodes", 0, "gain", 0.5),
    "bound after": ("nodes", 2, "bound_after", 0.5),
    "file digest": ("model", "file_sha256", "0" * 64),
    "semantic digest": ("model", "semantic_sha256", "0" * 64),
    "external": ("model", "external", {"weights.bin": "0" * 64}),
    "operators": ("ops", {"GroupSort": 1}),
    "unknown norm": ("statement", "norm", "l7"),
    "norm of another type": ("statement", "norm", ["l2"]),
    "output": ("statement", "output", "a"),
    "node name": ("nodes", 0, "name", "other"),
    "node operator": ("nodes", 0, "op", "Relu"),
    "nodes gone": ("nodes", []),
    "assumptions gone": ("assumptions", []),
    "schema": ("schema", "lipdeploy/certificate/v2"),
    "unknown key": ("remark", "trust me"),
    "unknown statement key": ("statement", "radius", 1.0),
}


@pytest.mark.parametrize("edit", LOWER.values(), ids=LOWER.keys())
def test_edits_are_noticed(path: Path, edit: tuple[Any, ...]) -> None:
    assert status(path) == "verified"
    edited(path, *edit[:-1], value=edit[-1])
    assert status(path) == "integrity"


def test_assumptions_in_earlier_words_are_today_s(path: Path) -> None:
    """Certificates name the assumptions in the words of the version that wrote them; nothing else may be missing."""
    words = json.loads(beside(path).read_text())["assumptions"]
    earlier = {today: before for before, today in EARLIER.items()}
    edited(path, "assumptions", value=[earlier.get(text, text) for text in words])
    assert words != json.loads(beside(path).read_text())["assumptions"]
    assert status(path) == "verified"
    edited(path, "assumptions", value=[earlier.get(text, text) for text in words][:-1])
    assert status(path) == "integrity"
    edited(path, "assumptions", value=[[text] for text in words])
    assert status(path) == "integrity"


NONSENSE: list[Any] = [
    None, True, False, "", "abc", "NaN", "sNaN", "Infinity", "-Infinity", "-5", "1e999999999", "1e-999999999", "0x10",
    "１２３", "1_0", " 100", [], ["100"], {}, 100, 100.0, 10**400, "9" * 5000, "nan", "inf", "0x1p99999", "-0x1p9",
]  # fmt: skip


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("key", ["lipschitz_bound", "lipschitz_bound_hex"])
def test_bounds_that_are_not_bounds(path: Path, key: str, value: Any) -> None:
    edited(path, "statement", key, value=value)
    assert status(path) == "integrity"


@pytest.mark.parametrize("value", [None, True, "1", [], {}, "NaN", -1, 10**400, [[1]], "abc"], ids=repr)
@pytest.mark.parametrize(
    "keys",
    [
        ("statement", "pairwise"),
        ("statement", "pairwise", 0),
        ("statement", "pairwise", 0, 1),
        ("statement", "numeric_error"),
        ("statement", "numeric_error", "f64"),
        ("statement", "numeric_error", "f64", "c0"),
        ("nodes",),
        ("nodes", 0),
        ("nodes", 0, "gain"),
        ("model",),
        ("statement",),
        ("verifier",),
    ],
    ids=lambda keys: ".".join(map(str, keys)),
)
def test_wrong_types_are_noticed_and_never_crash(path: Path, keys: tuple[Any, ...], value: Any) -> None:
    weaker = value is None and keys[-1] in {"f64", "gain"}  # claims nothing: allowed
    huge = value == 10**400 and not isinstance(value, bool)
    edited(path, *keys, value=value)
    assert status(path) in ({"integrity", "verified"} if weaker or huge else {"integrity"})


JUNK: list[Any] = [None, True, 1.0, -1, 5, "x", "", [], {}, [None], ["x", {}], {"x": 1}, {"x": "y"}, [[]]]


def places(content: Any, *keys: Any) -> Iterator[tuple[Any, ...]]:
    """Where something stands: every key, and of every list the first two elements."""
    if keys:
        yield keys
    entries = content.items() if isinstance(content, dict) else enumerate(content[:2]) if type(content) is list else ()
    for key, value in entries:
        yield from places(value, *keys, key)


def test_what_the_published_schema_rejects_is_no_certificate(path: Path) -> None:
    """Truth is the JSON schema: junk in any place that it does not allow is noticed, and nothing crashes."""
    content = json.loads(beside(path).read_text())
    validator = jsonschema.Draft202012Validator(json.loads(schema.read("certificate/v1")))
    assert validator.is_valid(content)
    everywhere, tried = list(places(content)), 0
    for keys, value in itertools.product(everywhere, JUNK):
        beside(path).write_text(json.dumps(content))
        edited(path, *keys, value=value)
        if not validator.is_valid(json.loads(beside(path).read_text())):
            tried += 1
            assert status(path) == "integrity", (keys, value)
    assert tried > 500


MISTYPED: dict[str, tuple[Any, ...]] = {
    "a truth value for a version": ("ops", {"GroupSort": True}),
    "a fraction for a version": ("ops", {"GroupSort": 1.0}),
}


@pytest.mark.parametrize("edit", MISTYPED.values(), ids=MISTYPED.keys())
def test_numbers_that_only_compare_equal(tmp_path: Path, edit: tuple[Any, ...]) -> None:
    """In Python True == 1.0 == 1, in a certificate they are three things."""
    path = tmp_path / "model.onnx"
    onnx.save(
        model("g (float[N, 4] x) => (float[N, 4] y) { y = lipdeploy.GroupSort(x) }", imports={"lipdeploy": 1}), path
    )
    verify(path).write_certificate(beside(path))
    assert (status(path), json.loads(beside(path).read_text())["ops"]) == ("verified", {"GroupSort": 1})
    edited(path, *edit[:-1], value=edit[-1])
    assert status(path) == "integrity"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_another_encoding_than_utf_8(path: Path, encoding: str) -> None:
    beside(path).write_bytes(beside(path).read_text().encode(encoding))
    assert status(path) == "integrity"


def test_escapes_are_text_and_halves_of_characters_are_not(path: Path) -> None:
    text = beside(path).read_text()
    assert '"norm": "l2"' in text
    beside(path).write_text(text.replace('"norm": "l2"', '"n\\u006frm": "\\u006C2"'))
    assert status(path) == "verified"
    beside(path).write_text(text.replace('"version": "', '"version": "\\ud800'))
    assert status(path) == "integrity"


def test_a_duplicate_among_many_keys_is_found_at_once(path: Path) -> None:
    """Half a megabyte; comparing every key with every other took a minute."""
    keys = [f'"{number}": 0' for number in range(40_000)]
    beside(path).write_text("{" + ", ".join([*keys, keys[-1]]) + "}")
    started = time.perf_counter()
    verdict = verify(path)
    assert time.perf_counter() - started < 5.0
    assert verdict.status == "integrity"
    assert verdict.refusals[0].message.endswith("duplicate key '39999'")


def test_the_certificate_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What helps the proof is what is compared with it, and a large file is parsed but once."""
    read: list[Path] = []
    original = certificate.read_bytes
    monkeypatch.setattr(certificate, "read_bytes", lambda where: (read.append(where), original(where))[1])
    assert status(path) == "verified"
    assert read == [beside(path)]


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (2, 1)])
def test_every_class_pair_is_compared(path: Path, place: tuple[int, int]) -> None:
    """Any entry below the truth is named; the truth is ‖W·diag(s)·(v_i − v_j)‖ at one pattern s of the Relu."""
    first, second = np.array([[1, 2, 3, 4], [-5, 6, 7, 8]]), np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 1]])
    i, j = place
    truth = float(np.linalg.norm(first @ (second[:, i] - second[:, j])))
    edited(path, "statement", "pairwise", i, j, value=truth * 0.999)
    verdict = verify(path)
    assert verdict.status == "integrity"
    assert f"claims pairwise[{i}][{j}] ≤ " in verdict.refusals[0].message


TEXT_EDITS: dict[str, Callable[[str], str]] = {
    "duplicate key": lambda text: text.replace('"norm": "l2"', '"norm": "l2", "norm": "l2"'),
    "duplicate bound": lambda text: text.replace('"lipschitz_bound":', '"lipschitz_bound": "1",\n  "lipschitz_bound":'),
    "NaN": lambda text: text.replace('"gain": ', '"gain": NaN, "x": ', 1),
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "list": lambda text: f"[{text}]",
    "deep": lambda text: "[" * 200_000,
    "two documents": lambda text: text + text,
    "number": lambda text: "1",
    "string": lambda text: '"certificate"',
    "null": lambda text: "null",
}


@pytest.mark.parametrize("edit", TEXT_EDITS.values(), ids=TEXT_EDITS.keys())
def test_text_edits_are_noticed(path: Path, edit: Callable[[str], str]) -> None:
    beside(path).write_text(edit(beside(path).read_text()))
    assert status(path) == "integrity"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 100, b'{"schema": "\xff"}'])
def test_bytes_that_are_no_text(path: Path, content: bytes) -> None:
    beside(path).write_bytes(content)
    assert status(path) == "integrity"


def test_weaker_claims_hold(path: Path) -> None:
    """A statement holds when what is proven now is at most what is stated."""
    content = json.loads(beside(path).read_text())
    weaker = copy.deepcopy(content)
    weaker["statement"]["lipschitz_bound"] = "1000"
    weaker["statement"]["lipschitz_bound_hex"] = (1000.0).hex()
    weaker["statement"]["numeric_error"]["f32"] = None
    beside(path).write_text(json.dumps(weaker))
    assert status(path) == "verified"


def test_a_folder_in_its_place_is_noticed(path: Path) -> None:
    beside(path).unlink()
    beside(path).mkdir()
    assert status(path) == "integrity"


def test_without_a_certificate_the_proof_stands_alone(path: Path) -> None:
    beside(path).unlink()
    assert status(path) == "verified"


def test_integrity_wins_over_the_limit(path: Path) -> None:
    edited(path, "model", "file_sha256", value="0" * 64)
    assert verify(path, max_lipschitz=1e-3).status == "integrity"


def test_source_date_epoch_is_the_only_clock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    verify(path).write_certificate(beside(path))
    assert json.loads(beside(path).read_text())["verifier"]["time"] == "1970-01-02T00:00:00Z"
    assert status(path) == "verified"
