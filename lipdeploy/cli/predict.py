"""``lipdeploy predict``: label, certified radius and whether it suffices, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lipdeploy.cli import inputs, report
from lipdeploy.cli.needs import need
from lipdeploy.cli.options import debug_option, graph_output_option, json_option, limit_option, norm_option, radius

if TYPE_CHECKING:
    from lipdeploy.runtime import CertifiedPrediction, CertifiedSession

SCHEMA = "lipdeploy/prediction/v1"
NOT_CERTIFIED = 1
MODES = ("f64", "adaptive", "f32", "network")


@click.command("predict")
@click.argument("model")
@click.argument("data", metavar="INPUT")
@click.option(
    "--epsilon", type=radius, metavar="R", help="Radius to certify: fail (exit 1) when a row falls short of it."
)
@norm_option
@click.option(
    "--certify",
    type=click.Choice(MODES),
    default="f64",
    show_default=True,
    help="The program whose answers are certified.",
)
@limit_option
@graph_output_option
@json_option
@debug_option
def command(
    model: str,
    data: str,
    epsilon: float | None,
    norm: str,
    certify: str,
    max_lipschitz: float | None,
    graph_output: str | None,
    as_json: bool,
) -> int:
    """Classify INPUT (.npy, .npz with x, or .png) and certify a radius around each row.

    The radius is in the units of INPUT. A PNG is fed as stored, 0 to 255.
    """
    need("onnxruntime", purpose="predict", install="lipdeploy[runtime]")
    from lipdeploy.runtime import CertifiedSession

    with report.working(f"verifying {model}"):
        session = CertifiedSession(
            model, norm=norm, max_lipschitz=max_lipschitz, certify=certify, output_name=graph_output
        )
    samples = inputs.read_samples(data, session.verdict.inputs)
    with report.working("predicting"):
        prediction = session.predict(samples, epsilon=epsilon)
    if as_json:
        report.document(as_document(session, prediction))
    else:
        report.show(_blocks(session, prediction, epsilon))
    return 0 if epsilon is None or bool(prediction.certified.all()) else NOT_CERTIFIED


def as_document(session: CertifiedSession, prediction: CertifiedPrediction) -> dict[str, object]:
    """The answer for programs: schema ``lipdeploy/prediction/v1``; an unbounded radius is null, no digit rounds up."""
    from lipdeploy.verify.rounding import number_down

    return {
        "schema": SCHEMA,
        "label": prediction.label.tolist(),
        "radius": list(map(number_down, prediction.radius.tolist())),
        "margin": list(map(number_down, prediction.margin.tolist())),
        "certified": prediction.certified.tolist(),
        "norm": prediction.norm,
        "lipschitz_bound": prediction.lipschitz_bound,
        "guarantee": prediction.guarantee,
        "certificate_sha256": prediction.certificate_sha256,
    }


def _blocks(session: CertifiedSession, prediction: CertifiedPrediction, epsilon: float | None) -> list[report.Block]:
    from lipdeploy.verify.rounding import decimal_down, shortest_down

    rows = tuple(
        (
            str(row),
            _name(int(label), session.verdict.class_names),
            decimal_down(float(radius), 7),
            decimal_down(float(margin), 7),
            "yes" if certified else "no",
        )
        for row, (label, radius, margin, certified) in enumerate(
            zip(prediction.label, prediction.radius, prediction.margin, prediction.certified, strict=True)
        )
    )
    asked = "radius above 0" if epsilon is None else f"radius at least {shortest_down(epsilon)}"
    return [
        report.Table(("row", "label", "radius ≥", "margin", "certified"), rows),
        f"{int(prediction.certified.sum())} of {len(rows)} rows certified: {asked}, {prediction.norm} norm, "
        f"guarantee '{prediction.guarantee}', Lipschitz bound {session.verdict.lipschitz_bound}.",
    ]


def _name(label: int, class_names: Sequence[str]) -> str:
    return f"{label} {class_names[label]}" if 0 <= label < len(class_names) else str(label)
