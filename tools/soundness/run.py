"""Who says less than the truth: ``python tools/soundness/run.py [--markdown]``.

Every probe's constant is known exactly. A tool that proves or estimates less than it would certify what is false.
Exit 1 when lipdeploy does; the other tools are only reported (a missing one by name).
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lipdeploy.verify import verify
from tools.soundness import activations, arithmetic, branches, convolutions, pools
from tools.soundness.peers import PEERS, Peer
from tools.soundness.probe import Probe

PROBES: tuple[Probe, ...] = (
    *branches.PROBES,
    *convolutions.PROBES,
    *pools.PROBES,
    *activations.PROBES,
    *arithmetic.PROBES,
)
LIPDEPLOY = "lipdeploy"
#: What a float32 tool may lose to rounding unreported; lipdeploy gets only the rounding of the truth itself.
PEER_SLACK = 1e-6
OWN_SLACK = 1e-15


@dataclass(frozen=True)
class Answer:
    """What a tool says about a probe: a number, or a word for why there is none."""

    claim: float | str
    less: bool

    def __str__(self) -> str:
        text = self.claim if isinstance(self.claim, str) else f"{self.claim:.6g}"
        return f"LESS {text}" if self.less else text


def ours(probe: Probe) -> Answer:
    """lipdeploy's verdict."""
    verdict = verify(probe.build().SerializeToString(), norm=probe.norm)
    if verdict.lipschitz_bound is None:
        return Answer(f"refused ({verdict.refusals[0].code})", less=False)
    return Answer(verdict.lipschitz_bound.value, below(probe, verdict.lipschitz_bound.value, OWN_SLACK))


def theirs(peer: Peer, probe: Probe) -> Answer:
    """Another tool's answer."""
    claim = peer.claim(probe)
    return Answer(claim, isinstance(claim, float) and below(probe, claim, PEER_SLACK))


def below(probe: Probe, claim: float, slack: float) -> bool:
    """Whether a finite number is less than the truth (∞ where nothing may be claimed)."""
    if probe.truth is None:
        return claim < float("inf")
    return not claim >= probe.truth * (1.0 - slack)


def table(peers: list[Peer]) -> tuple[list[list[str]], dict[str, list[str]]]:
    """(rows of the table, per tool the probes it says less about)."""
    rows, wrong = [], {name: [] for name in (LIPDEPLOY, *(peer.name for peer in peers))}
    for probe in PROBES:
        answers = {LIPDEPLOY: ours(probe), **{peer.name: theirs(peer, probe) for peer in peers}}
        for name, answer in answers.items():
            if answer.less:
                wrong[name].append(probe.name)
        truth = "none" if probe.truth is None else f"{probe.truth:.6g}"
        rows.append([probe.name, probe.norm, truth, loosened(probe, answers), *map(str, answers.values())])
    return rows, wrong


def loosened(probe: Probe, answers: dict[str, Answer]) -> str:
    """By how much lipdeploy's bound exceeds the truth."""
    claim = answers[LIPDEPLOY].claim
    if not isinstance(claim, float) or not probe.truth:
        return ""
    excess = claim / probe.truth - 1.0
    return "exact" if excess < 1e-8 else f"+{100 * excess:.2g} %"


def printed(header: list[str], rows: list[list[str]], *, markdown: bool) -> str:
    """Columns that line up, or a Markdown table."""
    if markdown:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
    )


def versions() -> str:
    """The versions behind the table."""
    names = ["numpy", "onnx", "torch", *(peer.distribution for peer in PEERS)]
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="for docs/soundness.md")
    markdown = parser.parse_args().markdown
    failures = {peer.name: peer.failure() for peer in PEERS}
    usable = [peer for peer in PEERS if not failures[peer.name]]
    rows, wrong = table(usable)
    header = ["probe", "norm", "truth", "looseness", LIPDEPLOY, *(peer.name for peer in usable)]
    print(printed(header, rows, markdown=markdown))
    print(f"\n{len(PROBES)} probes. {versions()}.\n")
    for name, probes in wrong.items():
        listed = f": {'; '.join(probes)}" if probes else ""
        print(f"{'* ' if markdown else ''}{name} says less than the truth {len(probes)} times{listed}")
    for name, failure in failures.items():
        if failure:
            print(f"{'* ' if markdown else ''}{name}: {failure}")
    sys.exit(1 if wrong[LIPDEPLOY] else 0)


if __name__ == "__main__":
    main()
