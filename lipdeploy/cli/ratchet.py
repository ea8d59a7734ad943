"""The ratchet ``--baseline``: what is proven now must not be above what an earlier certificate states.

The certificate is a record of what was once good enough, not evidence: every number on the other side of the comparison
is proven anew. It states 1e-9 more than its writer proved, which is the room that proofs on other machines need.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdeploy.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from lipdeploy.verify import ErrorBound, Verdict

SHOWN = 3
MALFORMED = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Comparison:
    """A verdict beside a baseline: what that states, whether the model means the same, and what got worse."""

    path: str
    lipschitz_bound: float
    same_meaning: bool
    regressions: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        """Whether anything got worse."""
        return bool(self.regressions)

    def to_json(self) -> dict[str, object]:
        """The object ``baseline`` of one model in ``lipdeploy/verify-report/v1``."""
        return {
            "path": self.path,
            "lipschitz_bound": self.lipschitz_bound,
            "lipschitz_bound_hex": self.lipschitz_bound.hex(),
            "same_meaning": self.same_meaning,
            "regressions": list(self.regressions),
        }

    def __str__(self) -> str:
        meaning = "the model means the same" if self.same_meaning else "the model has changed"
        return f"baseline {self.path} states {self.lipschitz_bound!r}; since then, {meaning}"


def baseline_of(model: str, baseline: str) -> Path:
    """The certificate that ``baseline`` names: a .json file itself, or the one of this model in a folder."""
    from lipdeploy.verify.certificate import certificate_path

    path = Path(baseline)
    if path.suffix != ".json" and os.path.isfile(path):
        raise InputError(f"{path}: not a certificate", hint="a baseline is a .cert.json file, or a folder of them")
    return path / certificate_path(model).name if os.path.isdir(path) or path.suffix != ".json" else path


def load(path: Path) -> dict[str, Any]:
    """The certificate, parsed strictly. ``InputError`` when there is none, ``IntegrityError`` when it is malformed."""
    from lipdeploy.verify import certificate

    if not os.path.isfile(path):
        hint = "--update-baseline makes one from what is proven now"
        raise InputError(f"{path}: there is no baseline certificate", hint=hint)
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: Permission denied", hint="check the path and its permissions")
    content = certificate.read(path)
    try:
        stated_bound(content)
    except MALFORMED as problem:
        raise IntegrityError(f"{path}: malformed statement: {problem}", hint="write it again") from problem
    return content


def stated_bound(content: dict[str, Any]) -> Fraction:
    """The least of the two forms in which a certificate states its bound: both must hold."""
    from lipdeploy.verify.certificate import DECIMAL

    decimal, hexadecimal = (content["statement"][f"lipschitz_bound{form}"] for form in ("", "_hex"))
    if not isinstance(decimal, str) or not DECIMAL.fullmatch(decimal):
        raise ValueError(f"lipschitz_bound is not a decimal string: {decimal!r}")
    exact = float.fromhex(hexadecimal)
    if not (math.isfinite(exact) and exact >= 0.0):
        raise ValueError(f"lipschitz_bound_hex is not a finite number: {hexadecimal!r}")
    return min(Fraction(decimal), Fraction(exact))


def compare(verdict: Verdict, path: Path) -> Comparison:
    """Compare what was proven with the baseline at ``path``.

    Where the model means the same as then, only the verifier can have changed: every class pair and every error
    constant must hold as well. Otherwise the bound and the largest class pair decide. Raises ``InputError`` when the
    two are about different norms or outputs.
    """
    from lipdeploy.verify.rounding import fraction_up

    content = load(path)
    _check_comparable(verdict, path, content["statement"])
    same = content["model"]["semantic_sha256"] == verdict.semantic_sha256
    limit = stated_bound(content)
    try:
        regressions = tuple(_regressions(verdict, path, content, limit, same=same))
    except MALFORMED as problem:
        raise IntegrityError(f"{path}: malformed statement: {problem}", hint="write it again") from problem
    return Comparison(str(path), fraction_up(limit), same, regressions)


def _check_comparable(verdict: Verdict, path: Path, statement: dict[str, Any]) -> None:
    output = None if verdict.output is None else verdict.output.name
    for what, then, now, option in (
        ("norm", statement["norm"], verdict.norm, "--norm"),
        ("output", statement["output"], output, "--graph-output"),
    ):
        if then != now:
            raise InputError(
                f"{verdict.path}: baseline {path} is about {what} '{then}', not '{now}'; they cannot be compared",
                hint=f"{option}, or make a new baseline with --update-baseline",
            )


def _regressions(
    verdict: Verdict, path: Path, content: dict[str, Any], limit: Fraction, *, same: bool
) -> Iterator[str]:
    from lipdeploy.verify.rounding import fraction_up

    bound = verdict.lipschitz_bound
    if bound is None or Fraction(bound.value) > limit:
        cause = "although the model means the same" if same else f"and the model has changed{_grown(verdict, content)}"
        yield f"the proven bound {bound} is above {fraction_up(limit)!r}, which baseline {path} states, {cause}"
    yield from _pair_regressions(verdict, path, content["statement"]["pairwise"], every=same)
    if same:
        yield from _error_regressions(verdict, path, content["statement"]["numeric_error"])


def _grown(verdict: Verdict, content: dict[str, Any]) -> str:
    """The nodes whose own gain grew most, for the reader to look at first."""
    then = {(node["name"], node["op"]): node["gain"] for node in content["nodes"]}
    grown = []
    for node in verdict.nodes:
        gain = then.get((node.name, node.op))
        if gain is not None and 0.0 < float(gain) < node.gain.value:
            grown.append((node.gain.value / float(gain), f"'{node.name}' {node.gain} (was {gain!r})"))
    names = [text for _, text in sorted(grown, key=lambda pair: -pair[0])[:SHOWN]]
    return f"; gains that grew: {', '.join(names)}" if names else ""


def _pair_regressions(verdict: Verdict, path: Path, stated: Any, *, every: bool) -> Iterator[str]:
    from lipdeploy.verify.certificate import number
    from lipdeploy.verify.rounding import decimal_up

    if stated is None or verdict.pairwise is None or len(stated) != len(verdict.pairwise):
        return  # other classes than then: nothing to compare pair by pair
    then = [[number(value) for value in row] for row in stated]
    now = verdict.pairwise.tolist()
    if not every:
        largest, allowed = max(map(max, now)), max(map(max, then))
        if not largest <= allowed:
            shown = decimal_up(largest, 7)
            yield f"the largest class-pair bound {shown} is above {allowed!r}, which baseline {path} states"
        return
    classes = range(len(now))
    worse = [(i, j) for i in classes for j in classes if not now[i][j] <= then[i][j]]
    if worse:
        i, j = worse[0]
        shown = decimal_up(now[i][j], 7)
        yield (
            f"{len(worse)} class-pair bounds are above what baseline {path} states, "
            f"the first for classes {i} and {j}: {shown}, stated {then[i][j]!r}, although the model means the same"
        )


def _error_regressions(verdict: Verdict, path: Path, stated: Any) -> Iterator[str]:
    for mode, then in sorted(stated.items()):
        if then is not None and not _holds(verdict.numeric_error.get(mode), then):
            yield f"the error bound of the {mode} program is above what baseline {path} states"


def _holds(now: ErrorBound | None, then: dict[str, Any]) -> bool:
    """Whether an error is still no larger, for inputs up to the same size."""
    from lipdeploy.verify.certificate import number, number_or_null

    c0, c1, x_max = number(then["c0"]), number(then["c1"]), number_or_null(then["x_max"])
    return now is not None and now.c0 <= c0 and now.c1 <= c1 and now.x_max >= x_max
