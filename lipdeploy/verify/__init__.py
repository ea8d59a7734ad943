"""The trusted part: proves a Lipschitz bound of an ONNX file from its bytes. Needs NumPy and onnx only."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from lipdeploy.errors import InputError, IntegrityError, Refusal, Refused
from lipdeploy.verify import certificate
from lipdeploy.verify.assumptions import ASSUMPTIONS
from lipdeploy.verify.bound import Bound, Estimate
from lipdeploy.verify.check import prove
from lipdeploy.verify.digest import CLASS_NAMES_KEY, semantic_sha256
from lipdeploy.verify.norms import norm_pair
from lipdeploy.verify.source import Source, read_source
from lipdeploy.verify.verdict import ErrorBound, NodeReport, TensorSpec, Verdict

__all__ = [
    "Bound",
    "ErrorBound",
    "Estimate",
    "NodeReport",
    "Source",
    "TensorSpec",
    "Verdict",
    "read_source",
    "verify",
    "verify_source",
    "version",
]


def version() -> str:
    """The installed version of lipdeploy."""
    try:
        return metadata.version("lipdeploy")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def verify(
    model: str | os.PathLike[str] | bytes,
    *,
    norm: str = "l2",
    max_lipschitz: float | None = None,
    output_name: str | None = None,
    check_certificate: bool = True,
) -> Verdict:
    """Prove an upper bound of the Lipschitz constant of an ONNX file.

    ``model`` is a path or the file's bytes; ``norm`` one of ``l2``, ``linf``, ``l1``, ``l2-linf``, ``l1-linf``
    (norm of the input, norm of the output). A certificate that lies beside the file is checked against the proof.
    The verdict's ``status`` is ``verified``, ``exceeded`` (above ``max_lipschitz``), ``refused`` or ``integrity``.

    Raises ``InputError`` when there is no readable ONNX model, or an option makes no sense.
    """
    _check_options(norm, max_lipschitz)
    path = "<bytes>" if isinstance(model, bytes) else os.fspath(model)
    try:
        source = read_source(model)
    except Refused as error:
        return Verdict(path, "refused", norm, None, max_lipschitz, refusals=error.refusals, assumptions=ASSUMPTIONS)
    return verify_source(
        source,
        norm=norm,
        max_lipschitz=max_lipschitz,
        output_name=output_name,
        check_certificate=check_certificate and not isinstance(model, bytes),
    )


def verify_source(
    source: Source,
    *,
    norm: str = "l2",
    max_lipschitz: float | None = None,
    output_name: str | None = None,
    check_certificate: bool = False,
) -> Verdict:
    """``verify`` for bytes that were read before, so that what is verified is what runs."""
    _check_options(norm, max_lipschitz)
    started = time.perf_counter()
    verdict = _proven(source, norm, max_lipschitz, output_name)
    beside = certificate.certificate_path(source.path)
    if check_certificate and verdict.status != "refused" and beside.exists():
        verdict = _checked(verdict, source, beside)
    return replace(verdict, elapsed_seconds=time.perf_counter() - started)


def _check_options(norm: str, max_lipschitz: float | None) -> None:
    norm_pair(norm)
    if max_lipschitz is not None and not 0.0 < max_lipschitz < float("inf"):
        raise InputError(f"the limit must be a positive number, not {max_lipschitz!r}", hint="--max-lipschitz 1.0")


def _proven(source: Source, norm: str, max_lipschitz: float | None, output_name: str | None) -> Verdict:
    empty = Verdict(
        path=source.path,
        status="refused",
        norm=norm,
        lipschitz_bound=None,
        max_lipschitz=max_lipschitz,
        assumptions=ASSUMPTIONS,
        file_sha256=source.file_sha256,
        external_sha256=source.external_sha256,
    )
    try:
        proof = prove(source.proto, norm, output_name)
    except Refused as error:
        return replace(empty, refusals=error.refusals)
    exceeded = max_lipschitz is not None and proof.bound.value > max_lipschitz
    return replace(
        empty,
        status="exceeded" if exceeded else "verified",
        lipschitz_bound=proof.bound,
        nodes=proof.nodes,
        pairwise=proof.pairwise,
        numeric_error=proof.numeric_error,
        inputs=proof.inputs,
        output=proof.output,
        operators=proof.operators,
        class_names=_class_names(source),
        semantic_sha256=semantic_sha256(source.proto),
    )


def _class_names(source: Source) -> tuple[str, ...]:
    for entry in source.proto.metadata_props:
        if entry.key == CLASS_NAMES_KEY:
            try:
                names = json.loads(entry.value)
            except ValueError:
                return ()
            return tuple(map(str, names)) if isinstance(names, list) else ()
    return ()


def _checked(verdict: Verdict, source: Source, path: Path) -> Verdict:
    def verdict_in(norm: str, output: str) -> Verdict:
        same = norm == verdict.norm and verdict.output is not None and output == verdict.output.name
        other = verdict if same else _proven(source, norm, None, output)
        if other.status == "refused":
            raise IntegrityError(f"{path}: states a bound that cannot be proven: {other.refusals[0]}")
        return other

    try:
        certificate.check(path, certificate.read(path), verdict_in)
    except (IntegrityError, InputError) as error:
        hint = error.hint or "export the model again, or write a new certificate with --write-certificate"
        refusal = Refusal("LIP022", "", "", error.message, hint)
        return replace(verdict, status="integrity", refusals=(refusal,))
    return verdict
