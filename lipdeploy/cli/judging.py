"""Judges models one by one for ``verify``: whatever goes wrong with one must not hide the others."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lipdeploy.cli import estimating, outcome, report, verdicts
from lipdeploy.errors import InputError, IntegrityError, Refusal, Refused

if TYPE_CHECKING:
    from lipdeploy.cli.ratchet import Comparison
    from lipdeploy.verify import Hints, Method, Verdict
    from lipdeploy.verify.progress import Watch
    from lipdeploy.verify.stored import Stored

BESIDE_THE_MODEL = ""
PERCENT = 100
#: Statuses whose bound was proven, so that it can be compared with a baseline.
PROVEN = ("verified", "exceeded")


@dataclass(frozen=True)
class Target:
    """One model and what is required of it; ``problem`` where there is nothing to judge (a pattern without a match)."""

    path: str
    norm: str = "l2"
    max_lipschitz: float | None = None
    output_name: str | None = None
    baseline: str | None = None
    method: str | None = None
    require_signature: str | None = None
    problem: InputError | None = None


@dataclass(frozen=True)
class Request:
    """What is asked about every model of one run."""

    estimate: bool = False
    certificate: str | None = None
    update_baseline: bool = False
    search_seconds: float = 20.0
    debug: bool = False


@dataclass(frozen=True)
class Judged:
    """One model with its verdict, with the reason why there is none, or with what went wrong besides."""

    path: str
    verdict: Verdict | None = None
    problem: Exception | None = None
    certificates: tuple[str, ...] = ()
    comparison: Comparison | None = None

    @property
    def exit_code(self) -> int:
        """The exit code that this model alone would give."""
        codes = [0] if self.verdict is None else [verdicts.exit_code(self.verdict)]
        return max(*codes, 0 if self.problem is None else outcome.exit_code(self.problem))


def judge(target: Target, request: Request) -> Judged:
    """Prove, compare with the baseline, write the certificate: as far as it goes."""
    judged = Judged(target.path)
    try:
        if target.problem is not None:
            raise target.problem
        with report.progress(f"verifying {target.path}", PERCENT) as advance:
            verdict = verdict_of(target, request, _percentage(advance))
            judged = dataclasses.replace(judged, verdict=verdict)
            judged = _signed(judged, target)
            if not request.update_baseline:
                judged = _compared(judged, target)
            return _recorded(judged, target, request)
    except Exception as problem:
        if request.debug:
            report.diagnostic("".join(traceback.format_exception(problem)))
        return dataclasses.replace(judged, problem=problem)


def _percentage(advance: Callable[[int], None]) -> Watch:
    """Turns the verifier's growing fractions into whole per cents for ``advance``."""
    told = 0

    def watch(node: str, fraction: float) -> None:
        nonlocal told
        percent = int(PERCENT * fraction)
        if percent > told:
            advance(percent - told)
            told = percent

    return watch


def verdict_of(target: Target, request: Request, watch: Watch | None = None) -> Verdict:
    """The verifier's verdict, with the lower estimate where it was asked for."""
    if request.estimate:
        estimating.require()
    from lipdeploy.verify import verify

    verdict = verify(
        target.path,
        norm=target.norm,
        max_lipschitz=target.max_lipschitz,
        output_name=target.output_name,
        check_certificate=not _replaces_certificate(target, request),
        method=cast("Method", target.method or "best"),  # without a search: what a certificate beside the model stores
        hints=_hints(target, request),
        watch=watch,
    )
    if request.estimate and verdict.lipschitz_bound is not None:
        verdict = dataclasses.replace(verdict, lower_estimate=estimating.estimate(target.path, verdict))
    return verdict


def _replaces_certificate(target: Target, request: Request) -> bool:
    """Whether the certificate beside the model is about to be written anew."""
    from lipdeploy.verify.certificate import certificate_path

    if request.certificate is None or request.certificate == BESIDE_THE_MODEL:
        return request.certificate is not None
    return os.path.realpath(request.certificate) == os.path.realpath(certificate_path(target.path))


def _hints(target: Target, request: Request) -> Hints | None:
    """Multipliers for the methods that use them: stored beside the model or in its baseline, else searched for where
    that was asked for.

    ``None``: none, or those in the certificate that the verifier reads and checks anyway.
    """
    replaced = _replaces_certificate(target, request)
    if target.method == "product" or (target.method is None and not replaced and target.baseline is None):
        return None
    if target.norm != "l2":
        if target.method is not None:
            message = f"multipliers bound the l2 norm, so in {target.norm} the product is what is proven"
            report.note(f"{target.path}: {message}")
        return None
    from lipdeploy.cli.ratchet import baseline_of
    from lipdeploy.verify.certificate import certificate_path
    from lipdeploy.verify.stored import Stored

    stored = Stored.read(certificate_path(target.path))
    if stored.multipliers is not None and not replaced:
        return None
    if stored.multipliers is None and target.baseline is not None:
        stored = Stored.read(baseline_of(target.path, target.baseline))
    if target.method is not None and (stored.multipliers is None or not _is_about(stored, target.path)):
        return _found(target, request)
    return stored.multipliers  # of a certificate that is replaced, too: what it proved must not be lost


def _is_about(stored: Stored, model: str) -> bool:
    """Whether a certificate is about this network: what was found for other weights is no reason not to search."""
    from lipdeploy.verify.digest import semantic_sha256
    from lipdeploy.verify.source import read_as_far

    return bool(stored.content["model"]["semantic_sha256"] == semantic_sha256(read_as_far(model)[0].proto))


def _found(target: Target, request: Request) -> Hints | None:
    """Multipliers that a search finds in its time."""
    from lipdeploy.prove.multipliers import find

    try:
        return find(target.path, target.output_name, request.search_seconds)
    except Refused:
        return None  # the verifier says why


def _signed(judged: Judged, target: Target) -> Judged:
    """The verdict after the signature: a proven model that the required key did not sign is not the one to deploy."""
    verdict = judged.verdict
    if target.require_signature is None or verdict is None or verdict.status not in PROVEN:
        return judged
    from lipdeploy import signing

    try:
        digests = signing.subjects(target.path, verdict.file_sha256, verdict.external_sha256)
        signing.check(target.path, digests, target.require_signature)
    except IntegrityError as problem:
        refusal = Refusal(signing.CODE, "", "", problem.message, problem.hint)
        return dataclasses.replace(
            judged, verdict=dataclasses.replace(verdict, status="integrity", refusals=(refusal,))
        )
    return judged


def _compared(judged: Judged, target: Target) -> Judged:
    """The verdict after the ratchet: worse than the baseline is above a limit, too."""
    verdict = judged.verdict
    if verdict is None or target.baseline is None or verdict.status not in PROVEN:
        return judged
    from lipdeploy.cli import ratchet

    comparison = ratchet.compare(verdict, ratchet.baseline_of(target.path, target.baseline))
    if comparison.is_worse:
        verdict = dataclasses.replace(verdict, status="exceeded")
    return dataclasses.replace(judged, verdict=verdict, comparison=comparison)


def _recorded(judged: Judged, target: Target, request: Request) -> Judged:
    """Write the certificates that were asked for."""
    if judged.verdict is not None and judged.verdict.status == "verified":
        for path in _certificate_paths(target, request):
            judged.verdict.write_certificate(path)
            judged = dataclasses.replace(judged, certificates=(*judged.certificates, str(path)))
    return judged


def _certificate_paths(target: Target, request: Request) -> Iterator[Path]:
    """Where a proven model, within its limits, leaves certificates."""
    from lipdeploy.cli.ratchet import baseline_of
    from lipdeploy.verify.atomic import make_folder
    from lipdeploy.verify.certificate import certificate_path

    if request.certificate is not None:
        yield Path(request.certificate or certificate_path(target.path))
    if request.update_baseline and target.baseline is not None:
        if Path(target.baseline).suffix != ".json":
            make_folder(Path(target.baseline))
        yield baseline_of(target.path, target.baseline)
