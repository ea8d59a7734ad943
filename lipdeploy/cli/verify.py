"""``lipdeploy verify``: the gate. Every model is reported, and the worst of them decides the exit code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource

from lipdeploy.cli import config, formats, outcome, outputs, report
from lipdeploy.cli.config import METHODS, Choices
from lipdeploy.cli.formats import FORMATS
from lipdeploy.cli.judging import BESIDE_THE_MODEL, Judged, Request, Target, judge
from lipdeploy.cli.needs import need
from lipdeploy.cli.options import debug_option, debugging, graph_output_option, json_option, limit_option, norm_option
from lipdeploy.errors import InputError

#: The options that write a report, for messages.
REPORTS = "--output, --report"
#: The methods that search, for --search-seconds.
SEARCHING = ("lmi", "best")
#: What the names of files beside MODEL.onnx end in, in place of .onnx: those that --touched knows.
BESIDE = (".cert.json", ".sig.json", ".onnx.data", ".onnx_data")


@dataclass(frozen=True)
class Delivery:
    """One report to hand over: its form, and the file it goes to (``None``: standard output)."""

    form: str
    file: str | None = None


def report_file(value: str) -> Delivery:
    """``FMT=FILE``, the value of ``--report``."""
    form, separator, file = value.partition("=")
    if form not in FORMATS or not separator or not file:
        raise click.BadParameter(f"'{value}' is not FMT=FILE with FMT one of {', '.join(FORMATS)}")
    return Delivery(form, None if file == "-" else file)


@click.command("verify")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@norm_option
@limit_option
@graph_output_option
@click.option(
    "--method", type=click.Choice(METHODS),
    help="product: norms along the graph; lmi, best: also search for multipliers that prove less (l2 chains). "
    "Default: the product, or less where the certificate beside the model stores multipliers.",
)  # fmt: skip
@click.option(
    "--search-seconds", type=click.FloatRange(min=0.0, max=86400.0), default=20.0, show_default=True, metavar="S",
    help="Time for the search of --method lmi and best.",
)  # fmt: skip
@click.option(
    "--baseline", metavar="CERT",
    help="Fail (exit 1) when what is proven is above what this certificate states; or a folder of them.",
)  # fmt: skip
@click.option(
    "--update-baseline", is_flag=True,
    help="Instead of comparing, write what was proven within the limit as the new baseline.",
)  # fmt: skip
@click.option(
    "--require-signature", metavar="KEY",
    help="Fail (exit 4) unless the key in this PEM file signed model and certificate: lipdeploy sign.",
)  # fmt: skip
@click.option(
    "--config", "configuration", metavar="FILE",
    help="Configuration [default: the nearest .lipdeploy.toml, or pyproject.toml with [tool.lipdeploy]].",
)  # fmt: skip
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)), default="text", show_default=True,
              help="Form of the report.")  # fmt: skip
@json_option
@click.option("--output", metavar="FILE", help="Write the report to FILE instead of printing it.")
@click.option(
    "--report", "reports", type=report_file, multiple=True, metavar="FMT=FILE",
    help="Also write the report to FILE in the form FMT; as often as you like.",
)  # fmt: skip
@click.option(
    "--write-certificate", "certificate", metavar="[PATH]", is_flag=False, flag_value=BESIDE_THE_MODEL,
    help="Write what was proven to PATH (.json), or beside the model. Give MODEL before this option.",
)  # fmt: skip
@click.option(
    "--touched", is_flag=True,
    help="MODELs are changed files: certificates, signatures and external data stand for the model beside them.",
)  # fmt: skip
@click.option("--estimate", is_flag=True, help="Also search for a lower estimate (needs the runtime extra).")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    models: tuple[str, ...],
    norm: str,
    max_lipschitz: float | None,
    graph_output: str | None,
    method: str | None,
    search_seconds: float,
    baseline: str | None,
    update_baseline: bool,
    require_signature: str | None,
    configuration: str | None,
    form: str,
    as_json: bool,
    output: str | None,
    reports: tuple[Delivery, ...],
    certificate: str | None,
    touched: bool,
    estimate: bool,
) -> int:
    """Prove a Lipschitz bound of each MODEL, an ONNX file, and compare it with the limit.

    Without MODEL, the models of the configuration. Options win over the configuration. Of several models the worst
    decides the exit code, in the order 5, 4, 3, 2, 1, 0.
    """
    if touched and models and not (models := _models_of(models)):
        report.note("no model lies beside the files that changed: nothing to verify")
        return 0
    chosen = norm if _is_given(ctx, "norm") else None
    options = Choices(chosen, max_lipschitz, graph_output, baseline, method, require_signature)
    deliveries = [Delivery(_form(ctx, form, as_json=as_json), None if output == "-" else output), *reports]
    _check_certificate_path(certificate, models)  # before a swallowed MODEL is missed
    request = Request(estimate, certificate, update_baseline, search_seconds, debugging(ctx))
    configured = config.find(configuration)
    targets = config.targets(configured, models, options)
    if any(target.require_signature for target in targets):
        need("cryptography", purpose="a required signature", install="lipdeploy[sign]")
    if _is_given(ctx, "search_seconds"):
        _check_search(targets)
    _check_certificates(request, targets)
    _check_baselines(baseline, update_baseline, targets)
    _check_files(deliveries, targets, request, configured.path)
    if update_baseline:
        _note_missing_baselines(targets)
    judged = [judge(target, request) for target in targets]
    return _deliver(judged, deliveries)


def _models_of(files: Sequence[str]) -> tuple[str, ...]:
    """The models that changed files belong to, each once; a certificate without a model beside it is a baseline."""
    found = []
    for file in files:
        stem = next((file.removesuffix(suffix) for suffix in BESIDE if file.endswith(suffix)), None)
        if stem is None:
            found.append(file)
        elif os.path.lexists(f"{stem}.onnx"):
            found.append(f"{stem}.onnx")
    return tuple(dict.fromkeys(found))


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _form(ctx: click.Context, form: str, *, as_json: bool) -> str:
    if as_json and _is_given(ctx, "form") and form != "json":
        raise InputError(f"lipdeploy verify: --json and --format {form}", hint="--report writes further forms to files")
    return "json" if as_json else form


def _check_certificate_path(certificate: str | None, models: Sequence[str]) -> None:
    if certificate and not certificate.endswith(".json"):
        raise InputError(
            f"--write-certificate: '{certificate}' does not end in .json",
            hint="lipdeploy verify MODEL --write-certificate [PATH.json], with MODEL before the option",
        )
    if certificate and len(models) > 1:
        raise _one_path(certificate, len(models))


def _check_certificates(request: Request, targets: Sequence[Target]) -> None:
    """A certificate makes one statement: no two requirements may write the same file."""
    if request.certificate and len(targets) > 1:
        raise _one_path(request.certificate, len(targets))
    if request.certificate is not None:
        _check_unique("--write-certificate", [target.path for target in targets])
    if request.update_baseline:
        _check_unique("--update-baseline", [str(path) for path in map(_baseline, targets) if path is not None])


def _check_unique(option: str, paths: Sequence[str]) -> None:
    real = [os.path.realpath(path) for path in paths]
    twice = [path for path, full in zip(paths, real, strict=True) if real.count(full) > 1]
    if twice:
        raise InputError(
            f"{option}: several requirements are about {twice[0]}, and a certificate is about one",
            hint="choose one, with --norm and --max-lipschitz, or give each its own file",
        )


def _one_path(certificate: str, count: int) -> InputError:
    return InputError(
        f"--write-certificate: one path, {certificate}, for {count} models",
        hint="leave the path out: each certificate then lies beside its model",
    )


def _check_search(targets: Sequence[Target]) -> None:
    if not any(target.method in SEARCHING for target in targets):
        hint = f"--method {' or '.join(SEARCHING)}, or method = … in the configuration"
        raise InputError("--search-seconds: nothing is searched for", hint=hint)


def _check_baselines(baseline: str | None, update: bool, targets: Sequence[Target]) -> None:
    if update and not any(target.baseline for target in targets):
        raise InputError("--update-baseline: no baseline is named", hint="--baseline CERT, or baseline = … in a table")
    several = len({target.path for target in targets}) > 1
    if several and baseline is not None and baseline.endswith(".json") and not os.path.isdir(baseline):
        raise InputError(
            f"--baseline: one certificate, {baseline}, for {len(targets)} models",
            hint="give the folder that holds them, or baseline = … under [[tool.lipdeploy.models]]",
        )
    _check_one_model_each(targets)


def _note_missing_baselines(targets: Sequence[Target]) -> None:
    for target in targets:
        if target.baseline is None and target.problem is None:
            report.note(f"{target.path}: no baseline is named for it, so none is written")


def _check_one_model_each(targets: Sequence[Target]) -> None:
    """A baseline is about one model: in a folder of them, models of one name would all be compared with one of them."""
    owners: dict[str, str] = {}
    for target in targets:
        path = _baseline(target)
        if path is None or target.problem is not None:
            continue
        owner = owners.setdefault(os.path.realpath(path), target.path)
        if os.path.realpath(owner) != os.path.realpath(target.path):
            raise InputError(
                f"--baseline: {path} would be the baseline of {owner} and of {target.path}",
                hint="give each its own, with baseline = … under [[tool.lipdeploy.models]]",
            )


def _check_files(
    deliveries: Iterable[Delivery], targets: Sequence[Target], request: Request, configuration: str
) -> None:
    """No certificate and no report may replace what is read here, and no report what is written."""
    from lipdeploy.verify.certificate import certificate_path

    keys = [(target.require_signature, "the key") for target in targets]
    files = [entry for target in targets for entry in outputs.files_of(target.path)]
    read = outputs.places([(configuration or None, "the configuration"), *keys, *files])
    written = [(target, *entry) for target in targets for entry in _certificates(target, request)]
    for target, option, path in written:
        own = os.path.realpath(certificate_path(target.path))
        if os.path.realpath(path) != own or read[own] != outputs.CERTIFICATE:
            outputs.check([(option, path)], read)
    baselines = [(_baseline(target), "a baseline") for target in targets]
    kept = outputs.places([*((path, "the certificate") for _, _, path in written), *baselines])
    outputs.check(((REPORTS, delivery.file) for delivery in deliveries), {**kept, **read})


def _certificates(target: Target, request: Request) -> Iterator[tuple[str, Path]]:
    """Where a proven model leaves certificates, with the option that asks for each."""
    from lipdeploy.verify.certificate import certificate_path

    if request.certificate is not None:
        yield "--write-certificate", Path(request.certificate or certificate_path(target.path))
    baseline = _baseline(target) if request.update_baseline else None
    if baseline is not None:
        yield "--update-baseline", baseline


def _baseline(target: Target) -> Path | None:
    from lipdeploy.cli.ratchet import baseline_of

    return None if target.baseline is None else baseline_of(target.path, target.baseline)


def _deliver(judged: Sequence[Judged], deliveries: Iterable[Delivery]) -> int:
    """Hand over every report; one that cannot be written hides neither the others nor a worse verdict."""
    for one in judged:
        if one.problem is not None:
            report.error(*outcome.describe(one.problem))
    worst = max(one.exit_code for one in judged)
    proven = [one.verdict for one in judged if one.verdict is not None]
    weights = outputs.places(entry for one in proven for entry in outputs.external_data(one.path, one.external_sha256))
    for delivery in deliveries:
        try:
            outputs.check([(REPORTS, delivery.file)], weights)  # only reading a model tells where its weights lie
            _hand_over(judged, delivery)
        except InputError as problem:
            report.error(*outcome.describe(problem))
            worst = max(worst, problem.exit_code)
    return worst


def _hand_over(judged: Sequence[Judged], delivery: Delivery) -> None:
    if delivery.file is not None:
        report.save(delivery.file, formats.render(delivery.form, judged))
        report.note(f"report written to {delivery.file}")
    elif delivery.form == "text":
        from lipdeploy.cli.formats.text import blocks

        report.show(blocks(judged))
    else:
        report.text(formats.render(delivery.form, judged))
