"""``lipdeploy sign``: prove again, then sign the model together with the certificate beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lipdeploy.cli import outputs, report
from lipdeploy.cli.needs import need
from lipdeploy.cli.options import debug_option
from lipdeploy.errors import InputError

if TYPE_CHECKING:
    from lipdeploy.verify import Verdict


@click.command("sign")
@click.argument("model", metavar="MODEL")
@click.option("--key", required=True, metavar="PEM", help="Private key: Ed25519 or P-256, PEM.")
@click.option("--passphrase-file", metavar="FILE", help="File with the passphrase of an encrypted key.")
@click.option("-o", "--output", metavar="FILE", help="The envelope [default: MODEL with .sig.json for its suffix].")
@debug_option
def command(model: str, key: str, passphrase_file: str | None, output: str | None) -> int:
    """Sign MODEL, its external data and the certificate beside it.

    The certificate is proven again first: what cannot be proven is not signed. The signature is a DSSE envelope with
    an in-toto statement; lipdeploy verify --require-signature checks it.
    """
    need("cryptography", purpose="lipdeploy sign", install="lipdeploy[sign]")
    from lipdeploy import signing

    target = signing.signature_path(model) if output is None else Path(output)
    files = [entry for entry in outputs.files_of(model) if entry[1] != outputs.SIGNATURE]
    _check(target, [*files, (key, "the key"), (passphrase_file, "the passphrase")])
    with report.working(f"verifying {model}"):
        certified, verdict = _proven(model)
    _check(target, outputs.external_data(model, verdict.external_sha256))
    digests = signing.subjects(model, verdict.file_sha256, verdict.external_sha256, certified=certified)
    signing.sign(model, digests, certified, key, passphrase=_passphrase(passphrase_file), path=target)
    report.line(f"signed {', '.join(digests)}: {target}")
    return 0


def _proven(model: str) -> tuple[bytes, Verdict]:
    """The certificate's bytes and what proves them; a file that changes meanwhile is not what is signed."""
    from lipdeploy import signing
    from lipdeploy.verify import certificate, verify

    beside = certificate.certificate_path(model)
    if not certificate.is_there(beside):
        raise InputError(f"{beside}: no certificate to sign", hint=f"lipdeploy verify {model} --write-certificate")
    certified = signing.read_certificate(model)
    content = certificate.parse(beside, certified)
    norm, output = (str(content["statement"][key]) for key in ("norm", "output"))
    verdict = verify(model, norm=norm, output_name=output, method="best")  # with the multipliers that it stores
    verdict.raise_for_status()
    certificate.check_files(beside, content, verdict.file_sha256, verdict.external_sha256)
    certificate.check(beside, content, lambda *_: verdict)  # verify read the file once more, and it may be another
    return certified, verdict


def _check(target: Path, kept: Iterable[tuple[outputs.Path | None, str]]) -> None:
    """The envelope may replace an older one, and nothing else: a private key cannot be had again."""
    outputs.check([("--output", target)], outputs.places(kept))


def _passphrase(path: str | None) -> bytes | None:
    if path is None:
        return None
    from lipdeploy.verify.source import read_file

    return read_file(Path(path), 4096).rstrip(b"\r\n")
