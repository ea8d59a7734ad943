"""The report for people: one HTML page that needs nothing else, in light and dark, readable without its drawings."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from fractions import Fraction
from html import escape
from importlib import resources

from lipdeploy.certify.document import EXTREMES, Outcome, classes, input_norm
from lipdeploy.certify.drawing import Chart
from lipdeploy.certify.pictures import drawable, pictures
from lipdeploy.certify.results import AtRadius, Results, percent_down, shown
from lipdeploy.verify import version
from lipdeploy.verify.rounding import decimal_down, decimal_up

NORMS = {"l2": "ℓ2", "linf": "ℓ∞", "l1": "ℓ1"}
GUARANTEES = {
    "deployed": "the program that serves answers keeps its class for every representable input in the ball",
    "network": "the real-valued network that the stored weights define has this class everywhere in the ball",
}
TILES = 3
MOST_NODES = 400
#: No script, no font, no picture from elsewhere: the page can be opened from a mail.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(outcome: Outcome) -> str:
    """The whole page."""
    title = f"Certification of {outcome.task.model}"
    style = (resources.files("lipdeploy.certify") / "page.css").read_text("utf-8")
    body = "\n".join(
        (
            f"<h1>{_text(title)}</h1>",
            _summary(outcome),
            _tiles(outcome),
            _at_table(outcome),
            _curve(outcome),
            _histogram(outcome),
            _classes(outcome),
            _gains(outcome),
            _samples(outcome),
            _provenance(outcome),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>\n{style}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def _summary(outcome: Outcome) -> str:
    norm, session = NORMS[input_norm(outcome.task)], outcome.task.session
    return (
        f"<p>{len(outcome.results):,} samples of <code>{_text(outcome.task.data.path)}</code>. A sample is certified "
        f"at ε when no change of it by at most ε in {norm} changes its class; the guarantee is "
        f"<b>{session.guarantee}</b>: {GUARANTEES[session.guarantee]}. No share on this page is rounded up.</p>"
    )


def _tiles(outcome: Outcome) -> str:
    results, verdict = outcome.results, outcome.task.verdict
    tiles = [(f"{percent_down(results.accuracy)} %", "accuracy, certified or not")]
    tiles += [
        (f"{percent_down(line.certified_accuracy)} %", f"right and certified at {_at(line)}")
        for line in outcome.at[:TILES]
    ]
    tiles.append((f"{results.without_certificate:,}", "samples without any certificate"))
    tiles.append(
        (f"≤ {decimal_up(outcome.task.session.lipschitz_bound, 5)}", f"proven Lipschitz bound ({verdict.norm})")
    )
    cells = "".join(f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{cells}</div>'


def _at_table(outcome: Outcome) -> str:
    if not outcome.at:
        return ""
    rows = [
        (
            _at(line),
            f"{percent_down(line.certified_accuracy)} %",
            f"{line.correct:,}",
            f"{line.wrong:,}",
            f"{line.abstained:,}",
        )
        for line in outcome.at
    ]
    head = ("", "certified accuracy", "right, certified", "wrong, certified", "abstained")
    return _section("At the radii that were asked for", _table(head, rows))


def _curve(outcome: Outcome) -> str:
    results, norm = outcome.results, NORMS[input_norm(outcome.task)]
    radii, certified = results.curve()
    shares = [100.0 * int(count) / len(results) for count in certified]
    own = [line for line in outcome.at if NORMS[line.norm] == norm and line.epsilon <= results.scale]
    told = "; ".join(f"{percent_down(line.certified_accuracy)} % at ε = {shown(line.epsilon)}" for line in own)
    description = (
        f"Share of samples that are right and certified, falling from "
        f"{_share(int(certified[0]), len(results))} at 0 to {_share(int(certified[-1]), len(results))} at "
        f"{decimal_down(float(radii[-1]), 3)}. {told}"
    )
    chart = Chart("curve", "Certified accuracy by radius", description, results.scale, 100.0)
    chart.axes(f"radius ε in {norm}, in the units of the data", "right and certified", " %")
    chart.line(radii.tolist(), shares)
    for line in own:
        share = line.certified_accuracy
        chart.mark(line.epsilon, float(100 * share), f"{percent_down(share)} %")
    return _section("Certified accuracy by radius", f"<figure>{chart.svg()}</figure>")


def _histogram(outcome: Outcome) -> str:
    results, norm = outcome.results, NORMS[input_norm(outcome.task)]
    edges, right, wrong = results.histogram()
    tallest = int((right + wrong).max(initial=1))
    description = f"Histogram of {len(results)} radii; the tallest of {len(right)} bars holds {tallest} samples."
    chart = Chart("histogram", "Certified radii", description, results.scale, tallest * 1.05)
    chart.axes(f"certified radius in {norm}", "samples")
    for left, edge, low, high in zip(edges[:-1], edges[1:], right.tolist(), wrong.tolist(), strict=True):
        words = f"radius {decimal_down(float(left), 3)} to {decimal_down(float(edge), 3)}: {low} right, {high} wrong"
        chart.bar(left, edge, 0.0, low, "right", words)
        chart.bar(left, edge, low, low + high, "wrong", words)
    beyond = int((results.radius > results.scale).sum())
    caption = (
        '<span class="key right"></span>right <span class="key wrong"></span>wrong. Not drawn: '
        f"{results.without_certificate:,} samples without a certificate. "
        f"The last bar includes {beyond:,} with a larger radius."
    )
    return _section("Certified radii", f"<figure>{chart.svg()}<figcaption>{caption}</figcaption></figure>")


def _classes(outcome: Outcome) -> str:
    head = ("class", "samples", "accuracy", *(_at(line) for line in outcome.at), "median radius")
    rows = []
    for line in classes(outcome):
        count = line["rows"]
        shares = [_share(part, count) for part in (line["correct"], *line["certified_correct"])]
        median = "–" if not count else _radius(line["median_radius"])
        rows.append((line["name"], f"{count:,}", *shares, median))
    return _section("Class by class", _table(head, rows))


def _gains(outcome: Outcome) -> str:
    nodes = outcome.task.verdict.nodes[:MOST_NODES]
    finite = [node.gain.value for node in nodes if math.isfinite(node.gain.value)]
    largest = max([*finite, 1e-300])
    rows = []
    for node in nodes:
        width = 100.0 * node.gain.value / largest if math.isfinite(node.gain.value) else 100.0
        bar = f'<span class="gain" style="width:{width:.1f}%"></span>'
        cells = (f'<td class="name">{_text(node.name or "–")}</td>', f'<td class="name">{_text(node.op)}</td>')
        numbers = f"<td>{_bound(node.gain.value)}</td><td>{_bound(node.bound_after.value)}</td>"
        rows.append(f'<tr>{"".join(cells)}{numbers}<td class="bar" aria-hidden="true">{bar}</td></tr>')
    names = "".join(f'<th scope="col" class="name">{name}</th>' for name in ("layer", "operator"))
    head = names + '<th scope="col">gain ≤</th><th scope="col">bound after it ≤</th><td></td>'
    note = (
        "How far each operator alone can stretch a distance, and the proven bound from the input to its output "
        f"({_text(outcome.task.verdict.norm)}). A bound for the whole chain may be better than the product of gains."
    )
    left_out = len(outcome.task.verdict.nodes) - len(nodes)
    more = f"<p>{left_out} further operators are left out here.</p>" if left_out else ""
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("Layer by layer", f'<p class="soft">{note}</p>{table}{more}')


def _samples(outcome: Outcome) -> str:
    most, least = outcome.results.extremes(EXTREMES)
    images: dict[int, str] = {}
    if drawable(outcome.task.data.rows.shape[1:]):
        images = pictures(outcome.task.data.take([*most, *least]))
    certain = f'<ul class="samples">{_cards(outcome, most, images)}</ul>'
    uncertain = f'<ul class="samples">{_cards(outcome, least, images)}</ul>'
    return _section("Most certain samples", certain) + _section("Least certain samples", uncertain)


def _cards(outcome: Outcome, rows: Sequence[int], images: dict[int, str]) -> str:
    return "".join(_card(outcome.results, row, outcome.class_names, images.get(row)) for row in rows)


def _card(results: Results, row: int, names: Sequence[str], image: str | None) -> str:
    said, truth = names[int(results.label[row])], names[int(results.truth[row])]
    picture = "" if image is None else f'<img src="{image}" alt="sample {row}, a {_text(truth)}" loading="lazy">'
    verdict = f"<b>{_text(said)}</b>" if said == truth else f'<b class="miss">{_text(said)}, truly {_text(truth)}</b>'
    return f"<li>{picture}{verdict}row {row}<br> {_radius(float(results.radius[row]))}</li>"


def _provenance(outcome: Outcome) -> str:
    task, results = outcome.task, outcome.results
    answered = ", ".join(f"{results.answered_by(name):,} by {name}" for name in ("f64", "f32"))
    library = task.session.library
    facts = [
        ("model", f"SHA-256 <code>{task.verdict.file_sha256}</code>"),
        ("certificate", f"SHA-256 <code>{task.session.certificate_sha256}</code>"),
        ("operator library", "none: function bodies" if library is None else f"SHA-256 <code>{library.sha256}</code>"),
        ("data", f"{_text(task.data.kind)}, SHA-256 <code>{task.data_sha256}</code>"),
        ("mode", f"{_text(task.settings.certify)}; rows answered: {answered}"),
        ("proof", f"{decimal_up(task.verdict.elapsed_seconds, 3)} s"),
        ("run", f"{outcome.seconds:.1f} s, engine {_text(outcome.engine)}, lipdeploy {_text(version())}"),
        ("assumptions", "; ".join(_text(words) for words in task.verdict.assumptions) or "–"),
    ]
    lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return _section("Where this comes from", f"<dl>{lines}</dl>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    columns = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'


def _at(line: AtRadius) -> str:
    return f"{NORMS[line.norm]} ε = {shown(line.epsilon)}"


def _share(count: int, total: int) -> str:
    return f"{percent_down(Fraction(count, total))} %" if total else "–"


def _radius(value: float | None) -> str:
    if value is None or math.isinf(value):
        return "unbounded"
    return f"≥ {decimal_down(value, 4)}" if value > 0.0 else "none"


def _bound(value: float) -> str:
    return decimal_up(value, 7) if math.isfinite(value) else "–"


def _text(words: str) -> str:
    """Text from files, harmless: no markup, and no character that hides or moves others."""
    shown = (char if unicodedata.category(char)[0] != "C" else char.encode("unicode_escape").decode() for char in words)
    return escape("".join(shown))
