"""``lipdeploy sign`` and ``--require-signature``; the judge of envelopes is securesystemslib, by DSSE's authors."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)  # fmt: skip
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from .conftest import DENSE, Cli, with_external_data, write_model

KINDS: dict[str, Callable[[], PrivateKeyTypes]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def write_keys(
    folder: Path, key: PrivateKeyTypes, name: str = "key", passphrase: bytes | None = None
) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    locked = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(params=sorted(KINDS))
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, KINDS[request.param]())


@pytest.fixture
def signed(cli: Cli, dense: Path, keys: tuple[Path, Path]) -> Path:
    """A model with certificate and signature."""
    assert cli("verify", dense, "--write-certificate").code == 0
    result = cli("sign", dense, "--key", keys[0])
    assert result.code == 0, result.err
    assert "dense.sig.json" in result.out
    return dense


def envelope_of(model: Path) -> Path:
    return model.with_suffix(".sig.json")


def test_signed_models_pass(cli: Cli, signed: Path, keys: tuple[Path, Path]) -> None:
    assert cli("verify", signed, "--require-signature", keys[1]).code == 0


def test_others_accept_the_envelope(signed: Path, keys: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    envelope = Envelope.from_dict(json.loads(envelope_of(signed).read_text()))
    public = SSlibKey.from_crypto(load_pem_public_key(keys[1].read_bytes()), keyid=next(iter(envelope.signatures)))
    envelope.verify([public], 1)
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [subject["name"] for subject in statement["subject"]] == ["dense.onnx", "dense.cert.json"]
    assert statement["predicate"] == json.loads(signed.with_suffix(".cert.json").read_text())
    envelope.payload += b" "
    with pytest.raises(VerificationError):
        envelope.verify([public], 1)


def test_an_envelope_of_others_is_accepted(cli: Cli, signed: Path, keys: tuple[Path, Path]) -> None:
    """URL-safe base64 and further keys are DSSE's too."""
    document = json.loads(envelope_of(signed).read_text())
    document["payload"] = document["payload"].replace("+", "-").replace("/", "_")
    document["signatures"].insert(0, {"sig": base64.b64encode(b"somebody else").decode()})
    envelope_of(signed).write_text(json.dumps(document))
    assert cli("verify", signed, "--require-signature", keys[1]).code == 0


def test_another_key(cli: Cli, signed: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, ed25519.Ed25519PrivateKey.generate(), "other")
    result = cli("verify", signed, "--require-signature", other, "--json")
    assert result.code == 4
    model = result.document["models"][0]
    assert (model["status"], model["refusals"][0]["code"]) == ("integrity", "LIP023")


def test_no_signature(cli: Cli, dense: Path, keys: tuple[Path, Path]) -> None:
    result = cli("verify", dense, "--require-signature", keys[1], "--json")
    assert result.code == 4
    assert "no certificate" in result.document["models"][0]["refusals"][0]["message"]
    assert cli("verify", dense, "--write-certificate").code == 0
    result = cli("verify", dense, "--require-signature", keys[1], "--json")
    assert result.code == 4
    assert "no signature" in result.document["models"][0]["refusals"][0]["message"]


def test_another_model_under_the_signature(cli: Cli, signed: Path, keys: tuple[Path, Path]) -> None:
    """A weaker model with a certificate of its own, proven and all: but nobody signed it."""
    write_model(signed, DENSE.replace("0.75", "0.5"))
    assert cli("verify", signed, "--write-certificate").code == 0
    result = cli("verify", signed, "--require-signature", keys[1], "--json")
    assert result.code == 4
    assert "'dense.onnx' is not the file that was signed" in result.document["models"][0]["refusals"][0]["message"]


def test_another_certificate_under_the_signature(cli: Cli, signed: Path, keys: tuple[Path, Path]) -> None:
    assert cli("verify", signed, "--norm", "l1", "--write-certificate").code == 0
    assert cli("verify", signed, "--require-signature", keys[1]).code == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(payloadType="text/plain"),
        lambda d: d.update(payload=base64.b64encode(b"{}").decode()),
        lambda d: d.update(payload="%%%"),
        lambda d: d.update(payload=7),
        lambda d: d.update(signatures=[]),
        lambda d: d.update(signatures=[{"keyid": "only"}]),
        lambda d: d["signatures"][0].update(sig=""),
        lambda d: d.pop("payload"),
    ],
)
def test_a_damaged_envelope(cli: Cli, signed: Path, keys: tuple[Path, Path], damage: Callable[[dict], object]) -> None:
    document = json.loads(envelope_of(signed).read_text())
    damage(document)
    envelope_of(signed).write_text(json.dumps(document))
    assert cli("verify", signed, "--require-signature", keys[1]).code == 4


def resign(model: Path, private: Path, payload: bytes) -> None:
    """The owner of the key signs whatever ``payload`` says."""
    from lipdeploy import signing

    key = signing._private_key(private, None)
    signature = {"sig": base64.b64encode(signing._signed(key, signing._to_be_signed(payload))).decode()}
    envelope = {"payloadType": signing.PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode()}
    envelope_of(model).write_text(json.dumps({**envelope, "signatures": [signature]}))


def statement_of(model: Path) -> dict[str, Any]:
    return dict(json.loads(base64.b64decode(json.loads(envelope_of(model).read_text())["payload"])))


def test_numbers_may_be_written_in_another_way(cli: Cli, signed: Path, keys: tuple[Path, Path]) -> None:
    statement = json.loads(
        json.dumps(statement_of(signed)), parse_float=lambda text: int(f) if (f := float(text)).is_integer() else f
    )
    resign(signed, keys[0], json.dumps(statement, indent=3).encode())
    assert cli("verify", signed, "--require-signature", keys[1]).code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(predicate=None),
        lambda d: d.pop("predicate"),
        lambda d: d["predicate"]["statement"].update(lipschitz_bound="0.0001"),
        lambda d: d["predicate"]["statement"]["pairwise"][0].__setitem__(0, False),
        lambda d: d["predicate"]["nodes"].pop(),
        lambda d: d["predicate"].update(more=1),
    ],
)
def test_the_predicate_is_the_certificate(
    cli: Cli, signed: Path, keys: tuple[Path, Path], change: Callable[[dict[str, Any]], object]
) -> None:
    """Who reads the signed statement alone must not read another bound."""
    statement = statement_of(signed)
    change(statement)
    resign(signed, keys[0], json.dumps(statement).encode())
    result = cli("verify", signed, "--require-signature", keys[1], "--json")
    assert result.code == 4
    message = result.document["models"][0]["refusals"][0]["message"]
    assert "its predicate is not the certificate dense.cert.json" in message


def test_a_certificate_that_is_nested_deeply_is_no_crash(cli: Cli, dense: Path, keys: tuple[Path, Path]) -> None:
    assert cli("verify", dense, "--write-certificate").code == 0
    beside = dense.with_suffix(".cert.json")
    content = json.loads(beside.read_text())
    content["nodes"][0]["hints"] = {"deep": "DEEP"}
    beside.write_text(json.dumps(content).replace('"DEEP"', "[" * 700 + "]" * 700))
    assert cli("sign", dense, "--key", keys[0]).code == 0
    assert cli("verify", dense, "--require-signature", keys[1]).code == 4


@pytest.mark.parametrize(
    ("spoil", "phrase"),
    [
        (lambda text: text.encode("utf-16"), "not strict JSON"),
        (lambda text: text.replace("{", '{"_type": "x", ', 1).encode(), "duplicate key"),
        (lambda text: text.replace("{", '{"more": NaN, ', 1).encode(), "NaN is not a number"),
        (lambda text: text.replace("{", '{"more": "\\ud800", ', 1).encode(), "not strict JSON"),
    ],
)
@pytest.mark.parametrize("where", ["envelope", "payload"])
def test_json_that_readers_understand_differently(
    cli: Cli, signed: Path, keys: tuple[Path, Path], where: str, spoil: Callable[[str], bytes], phrase: str
) -> None:
    if where == "payload":
        resign(signed, keys[0], spoil(json.dumps(statement_of(signed))))
    else:
        text = envelope_of(signed).read_text()
        doubled = text.replace("{", '{"_type": "y", ', 1) if phrase == "duplicate key" else text
        envelope_of(signed).write_bytes(spoil(doubled))
    result = cli("verify", signed, "--require-signature", keys[1], "--json")
    assert result.code == 4
    assert phrase in result.document["models"][0]["refusals"][0]["message"]


@pytest.fixture
def certified(cli: Cli, dense: Path) -> tuple[Path, str, str]:
    """Where the certificate of ``dense`` lies, its text, and that of one with a smaller bound."""
    assert cli("verify", dense, "--write-certificate").code == 0
    beside = dense.with_suffix(".cert.json")
    honest = beside.read_text()
    return beside, honest, honest.replace('"lipschitz_bound": "0.75', '"lipschitz_bound": "0.0001')


def test_what_is_signed_is_what_was_proven(
    cli: Cli, dense: Path, certified: tuple[Path, str, str], keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes the certificate while the model is being proven."""
    import lipdeploy.verify

    (beside, honest, forged), verify = certified, lipdeploy.verify.verify

    def replaced(new: str, *words: Any, **options: Any) -> Any:
        verdict = verify(*words, **options)
        beside.write_text(new)
        return verdict

    monkeypatch.setattr(lipdeploy.verify, "verify", functools.partial(replaced, forged))
    assert cli("sign", dense, "--key", keys[0]).code == 0
    assert statement_of(dense)["predicate"] == json.loads(honest)
    beside.write_text(honest)
    monkeypatch.setattr(lipdeploy.verify, "verify", verify)
    assert cli("verify", dense, "--require-signature", keys[1]).code == 0


def test_what_was_read_is_proven_although_the_file_is_honest_by_then(
    cli: Cli, dense: Path, certified: tuple[Path, str, str], keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lipdeploy.verify

    (beside, honest, forged), verify = certified, lipdeploy.verify.verify
    beside.write_text(forged)

    def honest_again(*words: Any, **options: Any) -> Any:
        beside.write_text(honest)
        return verify(*words, **options)

    monkeypatch.setattr(lipdeploy.verify, "verify", honest_again)
    assert cli("sign", dense, "--key", keys[0]).code == 4
    assert not envelope_of(dense).exists()


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '"sig"'])
def test_what_is_no_envelope(cli: Cli, signed: Path, keys: tuple[Path, Path], text: str) -> None:
    envelope_of(signed).write_text(text)
    assert cli("verify", signed, "--require-signature", keys[1]).code == 4


def test_the_configuration_requires(
    cli: Cli, signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(signed.parent)
    Path(".lipdeploy.toml").write_text(f"require_signature = '{keys[1].name}'\n[[models]]\npath = 'dense.onnx'\n")
    assert cli("verify").code == 0
    envelope_of(signed).unlink()
    assert cli("verify").code == 4


def test_external_data_is_signed(cli: Cli, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, ed25519.Ed25519PrivateKey.generate())
    path = with_external_data(tmp_path / "m.onnx", "m.data")
    assert cli("verify", path, "--write-certificate").code == 0
    assert cli("sign", path, "--key", private).code == 0
    assert cli("verify", path, "--require-signature", public).code == 0
    statement = json.loads(base64.b64decode(json.loads(envelope_of(path).read_text())["payload"]))
    names = [subject["name"] for subject in statement["subject"]]
    assert names == ["m.onnx", "m.data", "m.cert.json"]


@pytest.mark.parametrize("where", ["key.pem", "dense.onnx", "dense.cert.json", "word", "link"])
def test_the_envelope_replaces_nothing_but_an_envelope(
    where: str, cli: Cli, signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(signed.parent)
    Path("word").write_text("open sesame")
    Path("link").symlink_to("key.pem")
    before = {path.name: path.read_bytes() for path in signed.parent.iterdir()}
    result = cli("sign", signed, "--key", keys[0], "--passphrase-file", "word", "-o", where)
    assert result.code == 2
    assert f"--output: {where} is " in result.error
    assert {path.name: path.read_bytes() for path in signed.parent.iterdir()} == before
    assert cli("sign", signed, "--key", keys[0], "-o", "dense.sig.json").code == 0


def test_the_envelope_does_not_replace_external_data(cli: Cli, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, ed25519.Ed25519PrivateKey.generate())
    path = with_external_data(tmp_path / "m.onnx", "m.weights")
    before = (tmp_path / "m.weights").read_bytes()
    assert cli("verify", path, "--write-certificate").code == 0
    assert "is the external data" in cli("sign", path, "--key", private, "-o", tmp_path / "m.weights").error
    assert (tmp_path / "m.weights").read_bytes() == before


def test_an_encrypted_key(cli: Cli, dense: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, ed25519.Ed25519PrivateKey.generate(), passphrase=b"open sesame")
    word = tmp_path / "word"
    word.write_bytes(b"open sesame\n")
    assert cli("verify", dense, "--write-certificate").code == 0
    assert "--passphrase-file" in cli("sign", dense, "--key", private).error
    assert cli("sign", dense, "--key", private, "--passphrase-file", word).code == 0
    assert cli("verify", dense, "--require-signature", public).code == 0
    word.write_bytes(b"open parsley")
    assert cli("sign", dense, "--key", private, "--passphrase-file", word).code == 2


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())])
def test_keys_of_other_kinds(cli: Cli, dense: Path, tmp_path: Path, key: PrivateKeyTypes) -> None:
    private, public = write_keys(tmp_path, key)
    assert cli("verify", dense, "--write-certificate").code == 0
    assert "neither an Ed25519 nor a P-256 key" in cli("sign", dense, "--key", private).error
    good, _ = write_keys(tmp_path, ed25519.Ed25519PrivateKey.generate(), "good")
    assert cli("sign", dense, "--key", good).code == 0
    result = cli("verify", dense, "--require-signature", public)
    assert result.code == 2
    assert "neither" in result.err


def test_what_is_not_proven_is_not_signed(cli: Cli, signed: Path, unknown: Path, keys: tuple[Path, Path]) -> None:
    assert "no certificate to sign" in cli("sign", unknown, "--key", keys[0]).error
    certificate = signed.with_suffix(".cert.json")
    certificate.write_text(certificate.read_text().replace('"lipschitz_bound": "0.75', '"lipschitz_bound": "0.65'))
    envelope_of(signed).unlink()
    assert cli("sign", signed, "--key", keys[0]).code == 4
    assert not envelope_of(signed).exists()


def test_a_key_that_is_none(cli: Cli, signed: Path, keys: tuple[Path, Path]) -> None:
    assert cli("sign", signed, "--key", keys[1]).code == 2
    assert cli("sign", signed, "--key", signed).code == 2
    assert cli("verify", signed, "--require-signature", keys[0]).code == 2
    assert cli("verify", signed, "--require-signature", "nowhere.pem").code == 2
