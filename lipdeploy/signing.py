"""Signatures over a model and its certificate: who says that this is the file to deploy.

A proof needs no signature, because anyone can repeat it. A signature says something else: that the owner of a key
released exactly these bytes. It is a DSSE envelope (github.com/secure-systems-lab/dsse, v1.0) around an in-toto
Statement v1: its subjects are the model, its external data and its certificate, its predicate is the certificate.
Keys are PEM files, Ed25519 (RFC 8032) or ECDSA over P-256 with SHA-256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.errors import InputError, IntegrityError
from lipdeploy.verify import certificate, strict_json
from lipdeploy.verify.atomic import write_atomically
from lipdeploy.verify.source import read_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey
    PublicKey = EllipticCurvePublicKey | Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:lipdeploy:certificate:v1"
LARGEST_KEY = 2**16
LARGEST_ENVELOPE = 2**30
CODE = "LIP023"

Digests = Mapping[str, str]


def signature_path(model: str | os.PathLike[str]) -> Path:
    """Where the signature of a model file lies: beside it, same stem, ``.sig.json``."""
    return certificate.beside(model, ".sig.json")


def subjects(
    model: str | os.PathLike[str], file_sha256: str, external_sha256: Digests, *, certified: bytes | None = None
) -> dict[str, str]:
    """What a signature is about: the files' names, relative to the model's folder, with their SHA-256 digests.

    ``file_sha256`` and ``external_sha256`` are the digests of the bytes that were verified (``Verdict`` has them),
    ``certified`` the certificate's bytes (default: those beside the model).
    Raises ``IntegrityError`` when there is no certificate beside the model.
    """
    content = read_certificate(model) if certified is None else certified
    return {
        Path(model).name: file_sha256,
        **dict(sorted(external_sha256.items())),
        certificate.certificate_path(model).name: hashlib.sha256(content).hexdigest(),
    }


def read_certificate(model: str | os.PathLike[str]) -> bytes:
    """The certificate beside ``model``. Raises ``IntegrityError`` when there is none."""
    beside = certificate.certificate_path(model)
    if not certificate.is_there(beside):
        raise _contradiction(f"{beside}: there is no certificate, and a signature is about one")
    return certificate.read_bytes(beside)


def parsed(path: str | os.PathLike[str], content: bytes) -> Any:
    """``content`` as one JSON document in UTF-8, no key twice, neither NaN nor Infinity. Raises ``IntegrityError``."""
    try:
        return strict_json.parse(content)
    except (ValueError, RecursionError) as error:
        raise _contradiction(f"{os.fspath(path)}: not strict JSON: {error}") from error


def sign(
    model: str | os.PathLike[str],
    digests: Digests,
    certified: bytes,
    key: str | os.PathLike[str],
    *,
    passphrase: bytes | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Path:
    """Sign ``digests`` (see ``subjects``) and the certificate ``certified`` with the private key in ``key``.

    What is signed are these bytes, whatever lies beside ``model`` by now: they are what was proven.
    Returns the envelope's path (default: ``signature_path``), written whole or not at all. Raises ``InputError`` when
    the key cannot be read or is of another kind.
    """
    private = _private_key(Path(key), passphrase)
    statement = _statement(digests, parsed(certificate.certificate_path(model), certified))
    payload = json.dumps(statement, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    signature = {"keyid": key_id(private.public_key()), "sig": _text(_signed(private, _to_be_signed(payload)))}
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": _text(payload), "signatures": [signature]}
    target = signature_path(model) if path is None else Path(path)
    write_atomically(target, (json.dumps(envelope, indent=1) + "\n").encode())
    return target


def check(model: str | os.PathLike[str], digests: Digests, key: str | os.PathLike[str]) -> str:
    """The ``keyid`` of the signature beside ``model`` that the public key in ``key`` accepts for ``digests``.

    Raises ``IntegrityError`` (LIP023) when there is no such signature, it is about other bytes, or it states another
    certificate than the one beside ``model``; ``InputError`` when the key cannot be read.
    """
    public = _public_key(Path(key))
    beside = signature_path(model)
    payload, signatures = _envelope(beside)
    if not any(_accepts(public, signature, _to_be_signed(payload)) for signature in signatures):
        raise _contradiction(f"{beside}: no signature in it was made with the key in {os.fspath(key)}")
    statement = _document(beside, payload)
    _compare(beside, statement, digests)
    _compare_predicate(beside, statement, model, digests)
    return key_id(public)


def key_id(key: PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo (DER), in hexadecimal."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _statement(digests: Digests, predicate: Any) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _to_be_signed(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _signed(key: PrivateKey, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return key.sign(data, ec.ECDSA(SHA256())) if isinstance(key, ec.EllipticCurvePrivateKey) else key.sign(data)


def _accepts(key: PublicKey, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(SHA256()))
        else:
            key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _envelope(path: Path) -> tuple[bytes, list[bytes]]:
    """Payload and signatures of the envelope in ``path``."""
    if not certificate.is_there(path):
        raise _contradiction(f"{path}: there is no signature, and one is required")
    try:
        envelope = parsed(path, read_file(path, LARGEST_ENVELOPE))
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"its payload is not {PAYLOAD_TYPE}")
        signatures = [_binary(entry["sig"]) for entry in envelope["signatures"]]
        return _binary(envelope["payload"]), signatures
    except (InputError, LookupError, TypeError, ValueError) as error:
        raise _contradiction(f"{path}: not a DSSE envelope: {error}") from error


def _document(path: Path, payload: bytes) -> Mapping[str, Any]:
    """The signed statement: whoever holds the key wrote it, but it still has to be one of ours."""
    statement = parsed(f"{path}, payload", payload)
    try:
        kinds = statement["_type"], statement["predicateType"]
    except (LookupError, TypeError) as error:
        raise _contradiction(f"{path}: not an in-toto statement: {error}") from error
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise _contradiction(f"{path}: a statement of type {kinds}, not about a lipdeploy certificate")
    return dict(statement)


def _compare(path: Path, statement: Mapping[str, Any], digests: Digests) -> None:
    try:
        signed = {str(subject["name"]): str(subject["digest"]["sha256"]) for subject in statement["subject"]}
    except (LookupError, TypeError) as error:
        raise _contradiction(f"{path}: its subjects have no names and SHA-256 digests") from error
    for name, digest in digests.items():
        if signed.get(name) != digest:
            raise _contradiction(f"{path}: '{name}' is not the file that was signed")
    if len(statement["subject"]) != len(digests):
        raise _contradiction(f"{path}: signs other files than the model, its external data and its certificate")


def _compare_predicate(
    path: Path, statement: Mapping[str, Any], model: str | os.PathLike[str], digests: Digests
) -> None:
    """The predicate is the certificate: who reads the statement alone must not read other numbers."""
    beside, content = certificate.certificate_path(model), read_certificate(model)
    if hashlib.sha256(content).hexdigest() != digests.get(beside.name):
        raise _contradiction(f"{beside}: changed while it was read")
    try:
        same = _is_same(statement.get("predicate"), parsed(beside, content))
    except RecursionError as error:
        raise _contradiction(f"{beside}: nested too deeply to be compared") from error
    if not same:
        raise _contradiction(f"{path}: its predicate is not the certificate {beside.name}")


def _is_same(first: Any, second: Any) -> bool:
    """Whether two JSON documents are the same: 1 and 1.0 are one number, and neither is true."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_is_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def _contradiction(message: str) -> IntegrityError:
    return IntegrityError(message, code=CODE, hint="sign what is deployed: lipdeploy sign MODEL --key PRIVATE.pem")


def _private_key(path: Path, passphrase: bytes | None) -> PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_file(path, LARGEST_KEY), passphrase)
    except TypeError as error:  # a passphrase is missing, or there is one too many
        raise InputError(f"{path}: {error}", hint="--passphrase-file FILE, for an encrypted key only") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path}: not a private key in PEM form, or a wrong passphrase: {error}") from error
    if not _is_supported(key):
        raise _other_kind(path)
    return key  # type: ignore[return-value]


def _public_key(path: Path) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_file(path, LARGEST_KEY))
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "openssl pkey -in PRIVATE.pem -pubout -out PUBLIC.pem"
        raise InputError(f"{path}: not a public key in PEM form: {error}", hint=hint) from error
    if not _is_supported(key):
        raise _other_kind(path)
    return key  # type: ignore[return-value]


def _is_supported(key: object) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey)


def _other_kind(path: Path) -> InputError:
    return InputError(f"{path}: neither an Ed25519 nor a P-256 key", hint="openssl genpkey -algorithm ed25519")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _binary(text: str) -> bytes:
    """Base64, standard or URL-safe as DSSE allows, and nothing besides."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (AttributeError, binascii.Error) as error:
        raise ValueError(f"not base64: {error}") from error
