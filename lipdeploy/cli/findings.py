"""What a report has to say against a model, in one form for every format: a rule, a place, a sentence, a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lipdeploy.cli import outcome, verdicts
from lipdeploy.cli.judging import Judged
from lipdeploy.errors import REASONS, IntegrityError, Reason, Refusal, Refused

EXCEEDED, REGRESSED, INTEGRITY, NOT_JUDGED = "exceeded", "regressed", "integrity", "not-judged"

#: Every rule under which something can be reported: the codes of refusals, and four that have no code.
RULES: Mapping[str, Reason] = {
    **REASONS,
    EXCEEDED: Reason(
        "bound above the limit",
        "The bound was proven, and it is above the limit that was asked for.",
        "train or export with a smaller constant (--normalize), or raise --max-lipschitz",
    ),
    REGRESSED: Reason(
        "worse than the baseline",
        "The bound was proven, and it is above what the baseline certificate states.",
        "undo what made it worse, or accept it with --update-baseline",
    ),
    INTEGRITY: Reason(
        "integrity",
        "What is here is not what was certified, or a certificate cannot be read.",
        "export the model again, or write a new certificate with --write-certificate",
    ),
    NOT_JUDGED: Reason(
        "no verdict",
        "The model could not be judged: the file cannot be read, an option does not fit, or lipdeploy failed.",
        "read the message; it is no verdict about the model",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that a report says against a model. ``node`` and ``op`` are empty where it is about the whole file."""

    rule: str
    path: str
    message: str
    hint: str
    exit_code: int
    norm: str = ""
    node: str = ""
    op: str = ""

    @property
    def sentence(self) -> str:
        """Where in the model, and what."""
        where = f"node '{self.node}' ({self.op})" if self.op else f"'{self.node}'"
        return f"{where}: {self.message}" if self.node or self.op else self.message


def of(judged: Sequence[Judged]) -> list[Finding]:
    """Everything found, model by model."""
    return [finding for one in judged for finding in of_one(one)]


def worst_first(judged: Sequence[Judged]) -> list[Finding]:
    """Everything found, in the order of exit codes 5, 4, 3, 2, 1; in the order of the models among equals."""
    return sorted(of(judged), key=lambda finding: -finding.exit_code)


def of_one(one: Judged) -> Iterator[Finding]:
    """What is found in one model."""
    if one.verdict is not None:
        code, norm = verdicts.exit_code(one.verdict), one.verdict.norm
        for refusal in one.verdict.refusals:
            yield _refused(one.path, norm, refusal, code)
        for rule, message in excesses(one):
            yield Finding(rule, one.path, message, RULES[rule].hint, code, norm)
    if one.problem is not None:
        yield from _failed(one.path, one.problem)


def excesses(one: Judged) -> Iterator[tuple[str, str]]:
    """(rule, sentence) for everything that was proven and is too large."""
    verdict = one.verdict
    if verdict is None or verdict.status != "exceeded":
        return
    bound, limit = verdict.lipschitz_bound, verdict.max_lipschitz
    if bound is not None and limit is not None and bound.value > limit:
        yield (
            EXCEEDED,
            f"the proven Lipschitz bound {bound} ({verdict.norm}) is above the limit {verdicts.limit_text(limit)}",
        )
    for regression in one.comparison.regressions if one.comparison is not None else ():
        yield REGRESSED, regression


def _refused(path: str, norm: str, refusal: Refusal, code: int) -> Finding:
    return Finding(refusal.code, path, refusal.message, refusal.hint, code, norm, refusal.node, refusal.op)


def _failed(path: str, problem: Exception) -> Iterator[Finding]:
    code = outcome.exit_code(problem)
    if isinstance(problem, Refused):
        for refusal in problem.refusals:
            yield _refused(path, "", refusal, code)
        return
    message, hint = outcome.describe(problem)
    rule = INTEGRITY if isinstance(problem, IntegrityError) else NOT_JUDGED
    yield Finding(rule, path, message, hint, code)
