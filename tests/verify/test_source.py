"""Reading a model: external data beside it, strictly; what is no model is an input error, never a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lipdeploy as lip
from lipdeploy.errors import InputError, IntegrityError, Refused
from lipdeploy.verify import read_source, verify
from tests.verify.models import model, single


def external(location: str, **entries: str) -> onnx.ModelProto:
    """y = c·x with the two numbers of c in another file."""
    proto = single("Mul", (2,), {"c": np.ones(2, np.float32)})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return proto


def write(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    np.array([100, 100, 1, 2, 5, 5], np.float32).tofile(inside / "weights.bin")
    np.array([1, 1], np.float32).tofile(tmp_path / "outside.bin")
    return inside


def test_external_data_is_read_and_hashed(folder: Path) -> None:
    verdict = verify(write(folder, external("weights.bin", offset="8", length="8")))
    assert verdict.status == "verified", verdict.refusals
    assert verdict.lipschitz_bound is not None and verdict.lipschitz_bound.value == 2.0
    assert set(verdict.external_sha256) == {"weights.bin"}


def test_external_bytes_can_be_handed_over(folder: Path) -> None:
    proto = external("weights.bin", offset="0", length="8")
    data = (folder / "weights.bin").read_bytes()
    source = read_source(proto.SerializeToString(), external={"weights.bin": data})
    assert numpy_helper.to_array(source.proto.graph.initializer[0]).tolist() == [100.0, 100.0]


def test_a_changed_data_file_contradicts_the_certificate(folder: Path) -> None:
    path = write(folder, external("weights.bin", offset="8", length="8"))
    verify(path).write_certificate(path.with_suffix(".cert.json"))
    assert verify(path).status == "verified"
    np.array([100, 100, 1, 2, 5, 6], np.float32).tofile(folder / "weights.bin")
    assert verify(path).status == "integrity"


def certified(folder: Path, **entries: str) -> Path:
    """A model with external data, and its certificate."""
    path = write(folder, external("weights.bin", **entries))
    (folder / "weights.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    verify(path).write_certificate(path.with_suffix(".cert.json"))
    assert verify(path).status == "verified"
    return path


@pytest.mark.parametrize("entries", [{}, {"length": "8"}], ids=["the whole file", "a stated length"])
@pytest.mark.parametrize(
    "content",
    [
        np.array([1, 2], np.float32).tobytes() + b"\0",
        np.array([1, 3], np.float32).tobytes(),
        np.array([1, np.nan], np.float32).tobytes(),
        b"",
    ],
    ids=["longer", "other weights", "not finite", "empty"],
)
def test_other_bytes_are_noticed_also_where_nothing_can_be_proven(
    entries: dict[str, str], content: bytes, folder: Path
) -> None:
    """A file that is not the certified one is no malformed model: the digest is what tells, whatever the bytes are."""
    path = certified(folder, **entries)
    (folder / "weights.bin").write_bytes(content)
    verdict = verify(path)
    assert verdict.status == "integrity"
    assert "other bytes (external file 'weights.bin' differs)" in verdict.refusals[0].message
    with pytest.raises(IntegrityError, match="other bytes"):
        lip.CertifiedSession(path)


def test_a_model_that_is_refused_for_other_reasons_stays_refused(folder: Path) -> None:
    path = certified(folder, length="8")
    (folder / "weights.bin").unlink()
    verdict = verify(path)  # a file that is not there has no digest
    assert (verdict.status, verdict.refusals[0].code) == ("refused", "LIP012")
    assert verify(path, norm="linf", output_name="nowhere").status == "refused"


def test_a_refused_model_of_other_bytes_is_not_the_certified_one(folder: Path) -> None:
    path = certified(folder, length="8")
    path.write_bytes(path.read_bytes().replace(b"Mul", b"Mux"))
    verdict = verify(path)
    assert verdict.status == "integrity"
    assert "file_sha256 differs" in verdict.refusals[0].message
    path.with_suffix(".cert.json").unlink()
    assert (verify(path).status, verify(path).refusals[0].code) == ("refused", "LIP001")


def sha1(content: bytes) -> str:
    """The checksum that ONNX's documentation of external data means."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def test_a_checksum_is_of_the_whole_file(folder: Path) -> None:
    stated = sha1((folder / "weights.bin").read_bytes())
    for checksum in (stated, stated.upper()):
        verdict = verify(write(folder, external("weights.bin", offset="8", length="8", checksum=checksum)))
        assert verdict.status == "verified", verdict.refusals


@pytest.mark.parametrize(
    "checksum", ["0" * 40, "", "sha1", sha1(b""), sha1(np.array([1, 2], np.float32).tobytes())], ids=repr
)
def test_a_wrong_checksum_is_refused(checksum: str, folder: Path) -> None:
    verdict = verify(write(folder, external("weights.bin", offset="8", length="8", checksum=checksum)))
    assert (verdict.status, verdict.refusals[0].code) == ("refused", "LIP012")
    assert verdict.refusals[0].message == "'weights.bin' does not have the SHA-1 checksum that the model states"


def test_handed_over_bytes_have_a_checksum_too(folder: Path) -> None:
    data = (folder / "weights.bin").read_bytes()
    proto = external("weights.bin", length="8", checksum=sha1(data))
    assert read_source(proto.SerializeToString(), external={"weights.bin": data}).external == {"weights.bin": data}
    with pytest.raises(Refused, match="checksum"):
        read_source(proto.SerializeToString(), external={"weights.bin": data[::-1]})


def test_a_changed_file_with_a_checksum_is_not_the_certified_one(folder: Path) -> None:
    path = certified(folder, length="8", checksum=sha1(np.array([1, 2], np.float32).tobytes()))
    (folder / "weights.bin").write_bytes(np.array([1, 3], np.float32).tobytes())
    assert verify(path).status == "integrity"


LOCATIONS = [
    "../outside.bin", "sub/../../outside.bin", "/etc/hostname", "", ".", "..", "missing.bin", "a\\b",
    "weights.bin\0", "sub", "weights.bin/../weights.bin",
]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS, ids=repr)
def test_locations_that_are_not_a_file_beside_the_model(folder: Path, location: str) -> None:
    (folder / "sub").mkdir()
    verdict = verify(write(folder, external(location, length="8")))
    assert verdict.status == "refused"
    assert verdict.refusals[0].code == "LIP012"


NUMBERS = ["-1", "-0", "+8", " 8", "8 ", "1_6", "８", "0x8", "8.0", "", "9" * 30, "nan"]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("key", ["offset", "length"])
def test_numbers_are_plain_digits(folder: Path, key: str, number: str) -> None:
    """Python reads '1_6' as 16; the runtime may not. What is not plain digits is refused."""
    verdict = verify(write(folder, external("weights.bin", **{key: number})))
    assert verdict.status == "refused"
    assert verdict.refusals[0].code == "LIP012"


@pytest.mark.parametrize(("offset", "length"), [("0", "4"), ("0", "12"), ("20", "8"), ("24", "8"), ("0", "1000")])
def test_the_stated_size_must_be_the_tensor_s(folder: Path, offset: str, length: str) -> None:
    verdict = verify(write(folder, external("weights.bin", offset=offset, length=length)))
    assert verdict.status == "refused"
    assert verdict.refusals[0].code in {"LIP012", "LIP013"}


def test_symbolic_links_are_refused(folder: Path) -> None:
    os.symlink(folder.parent / "outside.bin", folder / "link.bin")
    os.symlink(folder.parent, folder / "up")
    for location in ("link.bin", "up/outside.bin"):
        verdict = verify(write(folder, external(location)))
        assert verdict.status == "refused"
        assert "symbolic link" in verdict.refusals[0].message


def test_unknown_and_duplicate_keys_are_refused(folder: Path) -> None:
    proto = external("weights.bin", length="8", colour="red")
    assert verify(write(folder, proto)).refusals[0].code == "LIP012"
    proto = external("weights.bin", length="8")
    entry = proto.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../outside.bin"
    assert verify(write(folder, proto)).refusals[0].code == "LIP012"


def test_external_data_in_constants_and_function_defaults_is_not_missed(folder: Path) -> None:
    """Wherever a tensor can hide, its bytes are hashed, or the model is refused."""
    tensor = external("weights.bin", length="8").graph.initializer[0]
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Mul", ["x", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    verdict = verify(write(folder, proto))
    assert verdict.status == "verified" and set(verdict.external_sha256) == {"weights.bin"}
    body = [helper.make_node("Constant", [], ["c"]), helper.make_node("Mul", ["X", "c"], ["Y"])]
    body[0].attribute.add(name="value", ref_attr_name="w", type=onnx.AttributeProto.TENSOR)
    function = helper.make_function("f", "Scale", ["X"], ["Y"], body, [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("w", tensor))
    calls = helper.make_graph([helper.make_node("Scale", ["x"], ["y"], domain="f")], "g", graph.input, graph.output)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    proto = helper.make_model(calls, opset_imports=imports, functions=[function], ir_version=10)
    verdict = verify(write(folder, proto))
    assert verdict.status == "refused" or (verdict.lipschitz_bound and verdict.lipschitz_bound.value >= 100.0)


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model", b"\x08\x07", os.urandom(64)], ids=range(5))
def test_what_is_no_model_is_an_input_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(InputError, match="not an ONNX model"):
            verify(source)


def test_missing_files_and_folders_are_input_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(InputError):
            verify(path)


def test_a_pipe_is_an_input_error_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(InputError):
        verify(tmp_path / "model.onnx")


@pytest.mark.parametrize("old", [b"Relu", b"\x01x", b"\x01y"])
def test_names_that_are_not_text(old: bytes) -> None:
    """A name that is not UTF-8 is no name: never verified, never a crash."""
    data = model("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }").SerializeToString()
    broken = data.replace(old, old[:-1] + b"\xff")
    assert broken != data
    with contextlib.suppress(InputError):
        assert verify(broken).status == "refused"


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_limits_are_input_errors(limit: float) -> None:
    with pytest.raises(InputError, match="limit"):
        verify(single("Relu", (2,)).SerializeToString(), max_lipschitz=limit)


def test_unknown_norms_are_input_errors() -> None:
    with pytest.raises(InputError, match="norm"):
        verify(single("Relu", (2,)).SerializeToString(), norm="l3")
