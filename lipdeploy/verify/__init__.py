"""The trusted part: proves a Lipschitz bound of an ONNX file from its bytes. Needs NumPy and onnx only."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from numbers import Real
from typing import Literal

from lipdeploy.errors import InputError, IntegrityError, Refusal, Refused
from lipdeploy.verify import certificate
from lipdeploy.verify.arithmetic import check_arithmetic
from lipdeploy.verify.assumptions import ASSUMPTIONS
from lipdeploy.verify.bound import Bound, Estimate
from lipdeploy.verify.check import walked
from lipdeploy.verify.digest import CLASS_NAMES_KEY, semantic_sha256
from lipdeploy.verify.norms import norm_pair
from lipdeploy.verify.progress import NodeHints, Watch
from lipdeploy.verify.source import Source, read_as_far, read_source
from lipdeploy.verify.stored import Stored
from lipdeploy.verify.tighten import Hints, tightened
from lipdeploy.verify.verdict import ErrorBound, NodeReport, TensorSpec, Verdict

__all__ = [
    "Bound",
    "ErrorBound",
    "Estimate",
    "Hints",
    "Method",
    "NodeReport",
    "Source",
    "TensorSpec",
    "Verdict",
    "read_certified",
    "read_source",
    "verify",
    "verify_source",
    "version",
]


#: ``product``: norms along the graph. ``lmi``: the multiplier certificate where it proves something, else the product.
#: ``best``: the smaller of the two.
Method = Literal["product", "lmi", "best"]
METHODS = ("product", "lmi", "best")


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
    method: Method = "product",
    hints: Hints | None = None,
    watch: Watch | None = None,
) -> Verdict:
    """Prove an upper bound of the Lipschitz constant of an ONNX file.

    ``model`` is a path or the file's bytes; ``norm`` one of ``l2``, ``linf``, ``l1``, ``l2-linf``, ``l1-linf``
    (norm of the input, norm of the output). A certificate that lies beside the file is checked against the proof.
    ``method`` ``lmi`` or ``best`` lets multipliers tighten an l2 bound: ``hints``, from
    ``lipdeploy.prove.multipliers.find``, are claims about parts of the graph, checked before use; where they prove
    nothing (or no part is eligible, or there are none) the product of the norms stands.
    ``watch(node, fraction)`` is called as the proof goes on.
    The verdict's ``status`` is ``verified``, ``exceeded`` (above ``max_lipschitz``), ``refused`` or ``integrity``.

    Raises ``InputError`` when there is no readable ONNX model, or an option makes no sense; ``IntegrityError`` when
    the thread's arithmetic is not that of IEEE-754.
    """
    _check_options(norm, max_lipschitz, method)
    check_certificate = check_certificate and not isinstance(model, bytes)
    source, refused = read_as_far(model)
    if refused is not None:
        verdict = replace(_unproven(source, norm, max_lipschitz), refusals=refused.refusals)
        stored = _stored(source) if check_certificate else None
        return verdict if stored is None else _checked(verdict, lambda nodes: verdict, source, stored, again=False)
    return verify_source(
        source,
        norm=norm,
        max_lipschitz=max_lipschitz,
        output_name=output_name,
        check_certificate=check_certificate,
        method=method,
        hints=hints,
        watch=watch,
    )


def read_certified(model: str | os.PathLike[str] | bytes) -> Source:
    """``read_source``; but where that refuses what was certified as other bytes, that is an ``IntegrityError``."""
    try:
        return read_source(model)
    except Refused:
        verify(model).raise_for_status()
        raise


def verify_source(
    source: Source,
    *,
    norm: str = "l2",
    max_lipschitz: float | None = None,
    output_name: str | None = None,
    check_certificate: bool = False,
    method: Method = "product",
    hints: Hints | None = None,
    watch: Watch | None = None,
) -> Verdict:
    """``verify`` for bytes that were read before, so that what is verified is what runs."""
    _check_options(norm, max_lipschitz, method)
    check_arithmetic()
    started = time.perf_counter()
    stored = _stored(source) if check_certificate else None
    claims = stored.multipliers if stored is not None and hints is None else hints

    def prove(nodes: NodeHints) -> Verdict:
        return _proven(source, norm, max_lipschitz, output_name, method, claims, nodes, watch)

    verdict = prove({} if stored is None else stored.node_hints)
    if stored is not None:
        again = method == "lmi" or stored.multipliers is not (claims if method == "best" else None)
        verdict = _checked(verdict, prove, source, stored, again=again)
    check_arithmetic()  # a library that was loaded or called on the way may have changed it
    return replace(verdict, elapsed_seconds=time.perf_counter() - started)


def _check_options(norm: str, max_lipschitz: float | None, method: str) -> None:
    norm_pair(norm)
    if method not in METHODS:
        raise InputError(f"unknown method '{method}'", hint=f"one of {', '.join(METHODS)}")
    is_number = isinstance(max_lipschitz, Real) and not isinstance(max_lipschitz, bool)
    if max_lipschitz is not None and not (is_number and 0.0 < max_lipschitz < float("inf")):
        raise InputError(f"the limit must be a positive number, not {max_lipschitz!r}", hint="--max-lipschitz 1.0")


def _proven(
    source: Source,
    norm: str,
    max_lipschitz: float | None,
    output_name: str | None,
    method: Method = "product",
    hints: Hints | None = None,
    nodes: NodeHints | None = None,
    watch: Watch | None = None,
) -> Verdict:
    empty = _unproven(source, norm, max_lipschitz)
    try:
        tighten = method != "product" and norm == "l2" and hints is not None
        walk = walked(source.proto, norm, output_name, hints=nodes, watch=watch)
        proof = tightened(walk, method, hints) if tighten and hints is not None else walk.proof()
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
        one_sided_by=proof.one_sided_by,
        operators=proof.operators,
        sizes=proof.sizes,
        class_names=_class_names(source),
        semantic_sha256=semantic_sha256(source.proto),
    )


def _unproven(source: Source, norm: str, max_lipschitz: float | None) -> Verdict:
    return Verdict(
        path=source.path,
        status="refused",
        norm=norm,
        lipschitz_bound=None,
        max_lipschitz=max_lipschitz,
        assumptions=ASSUMPTIONS,
        file_sha256=source.file_sha256,
        external_sha256=source.external_sha256,
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


def _stored(source: Source) -> Stored | None:
    """What lies in the place of the certificate beside a model."""
    beside = certificate.certificate_path(source.path)
    return Stored.read(beside) if certificate.is_there(beside) else None


def _checked(
    verdict: Verdict, prove: Callable[[NodeHints], Verdict], source: Source, stored: Stored, *, again: bool
) -> Verdict:
    """The verdict, or ``integrity`` when the certificate beside the model contradicts what is proven.

    ``verdict`` was proven with the stored hints for the nodes. They may cost time, but neither the limit nor a true
    statement: where either fails, everything is proven once more without them.
    """
    problem = _contradiction(verdict, source, stored, stored.node_hints, again=again)
    if stored.node_hints and (problem or verdict.status != "verified"):
        plain = prove({})
        if problem or verdict.status == "refused":
            problem = _contradiction(plain, source, stored, {}, again=again)
        verdict = min(plain, verdict, key=_size)
    return verdict if problem is None else replace(verdict, status="integrity", refusals=(problem,))


def _size(verdict: Verdict) -> float:
    return math.inf if verdict.lipschitz_bound is None else verdict.lipschitz_bound.value


def _contradiction(
    verdict: Verdict, source: Source, stored: Stored, nodes: NodeHints, *, again: bool
) -> Refusal | None:
    """Why the certificate does not hold beside ``verdict``, which was proven with the hints ``nodes``.

    ``again``: not with the stored multipliers, which has to be done first.
    """

    def verdict_in(norm: str, output: str) -> Verdict:
        same = norm == verdict.norm and verdict.output is not None and output == verdict.output.name
        other = (
            verdict if same and not again else _proven(source, norm, None, output, "best", stored.multipliers, nodes)
        )
        if other.status == "refused":
            raise IntegrityError(f"{stored.path}: states a bound that cannot be proven: {other.refusals[0]}")
        return other

    try:
        if stored.problem is not None:
            raise stored.problem
        certificate.check_files(stored.path, stored.content, source.file_sha256, source.external_sha256)
        if verdict.status != "refused":  # else there is nothing to compare, but the bytes can still be others
            certificate.check(stored.path, stored.content, verdict_in)
    except (IntegrityError, InputError) as error:
        hint = error.hint or "export the model again, or write a new certificate with --write-certificate"
        return Refusal("LIP022", "", "", error.message, hint)
    return None
