"""``CertifiedSession``: verify a model, then run exactly what was verified and say how far each answer holds."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime

from lipdeploy.errors import InputError, Refusal, Refused
from lipdeploy.runtime import engine as engines
from lipdeploy.runtime.answered import Answered, agreeing, columns, named, scores
from lipdeploy.runtime.comparisons import Probe, Run, check_programs
from lipdeploy.runtime.double import double_model, elements_per_row
from lipdeploy.runtime.engine import Engine
from lipdeploy.runtime.inputs import (
    check_finite,
    feeds_for,
    flattened,
    probe_feeds,
    values_in_a_row,
    values_per_row,
    widened,
)
from lipdeploy.runtime.library import REINSTALL, OperatorLibrary, find_library
from lipdeploy.runtime.native import Native, native_answers, native_of, native_rule
from lipdeploy.runtime.prediction import CertifiedPrediction, checked_epsilon
from lipdeploy.runtime.program import rewritten_program, stored_program
from lipdeploy.runtime.providers import CUDA, Asked, choose
from lipdeploy.runtime.selftest import check_kernels
from lipdeploy.verify import certificate, read_certified, verify_source, version
from lipdeploy.verify.arithmetic import check_arithmetic
from lipdeploy.verify.norms import Norm, norm_pair
from lipdeploy.verify.progress import Watch
from lipdeploy.verify.radius import CertifiedRows, RadiusRule, input_norm_up, radius_rule
from lipdeploy.verify.rounding import mul_up
from lipdeploy.verify.verdict import ErrorBound, TensorSpec, Verdict

Array = np.ndarray[Any, Any]
MODES = ("f64", "adaptive", "f32", "network")
GUARANTEES = {"f64": "deployed", "adaptive": "deployed", "f32": "deployed", "network": "network"}
REPLACE = "replace the operator (Tanh, Gelu, Softplus, splines and sorting are answered); verify still proves the bound"
BYTES_PER_RUN = 256 * 2**20  # the float64 program holds every window of a convolution at once


class CertifiedSession:
    """A verified model, ready to answer; safe to share between threads.

    Everything that can fail fails here: reading, verification, the limit, loading, providers, the operator library.

    ``model`` is the path or the bytes of an ONNX file. ``norm`` and ``max_lipschitz`` as in ``lipdeploy.verify``.
    ``certify`` chooses the program that answers ``predict`` and the guarantee: ``"f64"`` (deployed, default),
    ``"adaptive"`` (deployed; float32 where its error bound suffices, else float64), ``"f32"`` (deployed, smaller
    radii), ``"network"`` (float32 labels, radii of the real-valued network).
    ``providers`` as in ONNX Runtime, default the CPU. ``threads`` bounds the threads of one call;
    ``spinning=False`` lets idle ones sleep between calls (servers). ``watch(node, fraction)`` hears of the proof.

    Raises ``InputError`` (unreadable, wrong option), ``Refused`` (not provable, or no guarantee in this mode),
    ``LimitExceeded``, ``IntegrityError`` (certificate, operator library, provider or executed graph differ).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        norm: str = "l2",
        max_lipschitz: float | None = None,
        certify: str = "f64",
        providers: Asked | None = None,
        threads: int | None = None,
        output_name: str | None = None,
        *,
        spinning: bool = True,
        watch: Watch | None = None,
    ) -> None:
        _check_options(certify, threads)
        check_arithmetic()
        self.certify = certify
        self.guarantee = GUARANTEES[certify]
        source = read_certified(model)
        self.verdict: Verdict = verify_source(
            source,
            norm=norm,
            max_lipschitz=max_lipschitz,
            output_name=output_name,
            check_certificate=not isinstance(model, bytes),
            method="best",  # with the multipliers that the certificate stores, if any
            watch=watch,
        )
        self.verdict.raise_for_status()
        self.certificate: dict[str, Any] = certificate.document(self.verdict, version())
        self.certificate_sha256 = hashlib.sha256(certificate.dumps(self.certificate).encode()).hexdigest()
        self.library: OperatorLibrary | None = find_library()
        self._engine = Engine(choose(providers), threads, self.library, spinning)
        self._inputs: tuple[TensorSpec, ...] = self.verdict.inputs
        self._output: str = _name_of_output(self.verdict)
        self._stored = self._open_stored(source.proto)
        self._heads = self.verdict.class_bounds
        self._error_constants()  # where no program's are known, this says it best
        self._double, self._rows_per_run = self._open_double(source.proto)
        self._native: Native | None = native_of(self.library)
        self._radius_rule, self._stored_rule = (native_rule(rule, self._native) for rule in self._radius_rules())
        self._single = all(spec.dtype != np.float64 for spec in self._inputs)  # every input value is a float32 number
        self._input_size = values_per_row(self._inputs)
        plain = len(self._inputs) == 1 and self._inputs[0].dtype == np.float32 and norm_pair(norm)[0] is Norm.L2
        self._plain_input = self._inputs[0].name if plain else None
        float32s = {"adaptive": self._stored_rule, "f32": self._radius_rule}.get(certify)
        self._at_once = native_answers(float32s, self._input_size) if plain and self._input_size else None
        self._compare_programs(source.proto)
        if self.library is not None:
            self.library.check(self.verdict.operators)
        if source.proto.ByteSize() > engines.HEAVY:
            del source
            engines.give_memory_back()

    def __repr__(self) -> str:
        about = f"norm={self.norm!r}, lipschitz_bound={self.verdict.lipschitz_bound}, certify={self.certify!r}"
        return f"CertifiedSession({self.verdict.path!r}, {about}, guarantee={self.guarantee!r})"

    # What is known about the model.

    @property
    def norm(self) -> str:
        """The norm of the statement."""
        return self.verdict.norm

    @property
    def lipschitz_bound(self) -> float:
        """The proven constant, rounded up."""
        bound = self.verdict.lipschitz_bound
        assert bound is not None  # a verified verdict has one
        return bound.value

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that were obtained."""
        return tuple(self._stored.get_providers())

    @property
    def provider_options(self) -> Mapping[str, Mapping[str, str]]:
        """Their options, read back."""
        options: dict[str, dict[str, str]] = self._stored.get_provider_options()
        return options

    @property
    def optimisation(self) -> Mapping[str, str]:
        """ONNX Runtime's level of graph optimisation, read back: per program, the highest that stays verified."""
        programs = {"stored": self._stored, "float64": self._double}
        return {
            name: program.get_session_options().graph_optimization_level.name
            for name, program in programs.items()
            if program is not None
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each input; ``None`` is the batch axis."""
        return self._inputs

    @property
    def classes(self) -> bool:
        """Whether ``predict`` can answer: the output is a row of class scores, or one score that can change sign."""
        return self._heads is not None

    # Drop-in for onnxruntime.InferenceSession.

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Array], run_options: Any = None
    ) -> list[Any]:
        """Run the stored-precision program as ``onnxruntime.InferenceSession.run`` does; no guarantee attached."""
        outputs: list[Any] = self._stored.run(output_names, dict(input_feed), run_options)
        return outputs

    def get_inputs(self) -> list[onnxruntime.NodeArg]:
        """The inputs of the stored-precision program."""
        nodes: list[onnxruntime.NodeArg] = self._stored.get_inputs()
        return nodes

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        """The outputs of the stored-precision program."""
        nodes: list[onnxruntime.NodeArg] = self._stored.get_outputs()
        return nodes

    def get_providers(self) -> list[str]:
        """The execution providers that were obtained."""
        return list(self.providers)

    # Answers with a guarantee.

    def predict(self, x: Any, epsilon: float | None = None) -> CertifiedPrediction:
        """Label each row of ``x`` and say in which ball the label holds.

        ``x`` is an array (batch, ...) in the model's element type, or in another one that it holds exactly; a
        dictionary of arrays where the model has several inputs. ``epsilon``, finite and ≥ 0, in the input norm.

        Raises ``InputError`` for a wrong shape, type, NaN or infinity; ``Refused`` (LIP019) where the output is no row
        of class scores, or one number that never changes sign.
        """
        wanted = checked_epsilon(epsilon)
        pairwise = self._class_bounds()
        check_arithmetic()
        feeds = feeds_for(x, self._inputs, finite=False)
        found = self._in_one_call(feeds, pairwise, wanted) or self._certified(feeds, pairwise, wanted)
        answers, logits, program = found
        return CertifiedPrediction(
            label=answers.label,
            radius=answers.radius,
            margin=answers.margin,
            certified=answers.radius >= wanted if wanted > 0.0 else answers.radius > 0.0,
            logits=logits,
            program=program,
            norm=self.norm,
            lipschitz_bound=self.lipschitz_bound,
            guarantee=self.guarantee,
            epsilon=None if epsilon is None else wanted,
            input_size=self._input_size or values_in_a_row(feeds),
            certificate_sha256=self.certificate_sha256,
        )

    def output_band(self, epsilon: float) -> float:
        """How far the real network's output can move, in the output norm, when the input moves by ≤ ``epsilon``.

        ‖Δy‖ ≤ L·ε, rounded up. Raises ``InputError`` unless ``epsilon`` is finite and ≥ 0.
        """
        return mul_up(self.lipschitz_bound, checked_epsilon(epsilon))

    # Inside.

    def _open(self, model: onnx.ModelProto, what: str) -> onnxruntime.InferenceSession:
        session = self._engine.open(model, what)
        check_kernels(self._engine, model)
        return session

    def _open_stored(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        try:
            return self._open(stored_program(model), "stored program")
        except Refused:  # no kernel for one of its operators
            program = rewritten_program(model, self._output, self._engine.double_products, self.verdict.sizes)
            if program is None:
                raise
        return self._open(program, "stored program, rewritten")

    def _open_double(self, model: onnx.ModelProto) -> tuple[onnxruntime.InferenceSession | None, int]:
        """The float64 program, where this mode needs it, and how many rows it takes at a time."""
        if self.certify == "f32" or self.verdict.class_bounds is None:
            return None, 0
        wide = double_model(model, self._output, self._engine.double_products, self.verdict.sizes)
        rows = max(1, BYTES_PER_RUN // (8 * elements_per_row(wide)))
        return self._open(wide, "float64 program"), rows

    def _compare_programs(self, model: onnx.ModelProto) -> None:
        """Raise ``IntegrityError`` when programs of this network answer a probe otherwise than their errors allow."""
        heads, errors = self._heads, self.verdict.numeric_error
        if heads is None:
            return
        probe = Probe.of(self.verdict, self._inputs)
        double: Run | None = None
        if self._double is not None:
            double = partial(self._double_logits, pairwise=heads)
            if self._engine.double_products:
                self._check_products(model, probe, double)
        elif errors.get("f64") is not None:
            with contextlib.suppress(Refused):  # there need not be one
                double = self._to_compare(model, products=self._engine.double_products)
        stored = partial(self._stored_logits, pairwise=heads)
        check_programs(probe, stored, double, errors, stored_answers=self._uncovered() is None)

    def _check_products(self, model: onnx.ModelProto, probe: Probe, double: Run) -> None:
        """Both programs compute the same real function with the same error bound, so a probe may show twice that."""
        error = self.verdict.numeric_error.get("f64")
        if error is None:
            return
        path = self.library.path if self.library else ""
        what = f"the float64 products of {path} and of the standard operators"
        standard = self._to_compare(model, products=False)(probe.feeds)
        probe.check_alike(double(probe.feeds), standard, (error, error), what, REINSTALL)

    def _to_compare(self, model: onnx.ModelProto, *, products: bool) -> Run:
        """A float64 program, with the library's products or in standard operators, for as long as it is held."""
        program = double_model(model, self._output, products, self.verdict.sizes)
        opened = self._engine.open_to_compare(program, "float64 program to compare with")
        return lambda feeds: scores(engines.run(opened, self._output, widened(feeds)), feeds)

    def _error_constants(self) -> ErrorBound | None:
        """Error constants of the program whose logits give the radius; refused where they are unknown."""
        if self._heads is None:
            return None
        program = "f32" if self.certify == "f32" else "f64"
        uncovered = self._uncovered()
        if program == "f32" and uncovered is not None:
            raise _no_guarantee(uncovered, "certify='f64' or certify='adaptive'")
        error = self.verdict.numeric_error.get(program)
        if error is None:
            raise self._unknown_rounding(program)
        return error

    def _unknown_rounding(self, program: str) -> Refused:
        """The refusal that names the node at which the error of ``program`` stops being known, and a way out."""
        node = next((node for node in self.verdict.nodes if program in node.unspecified), None)
        other = self.certify == "f32" and self.verdict.numeric_error.get("f64") is not None
        hint = "certify='f64' or certify='adaptive'" if other else "no mode can answer: " + REPLACE
        if node is None and any(None in spec.shape[1:] for spec in self._inputs):
            message = f"the sizes of the input are open, so the rounding error of the {program} program is not known"
            return Refused([Refusal("LIP018", "", "", message, "export the model once more with fixed sizes")])
        if node is None:
            message = f"the rounding error of the {program} program is not known"
            return Refused([Refusal("LIP018", "", "", message, hint)])
        message = f"how {node.op} rounds in the {program} program is specified by nobody, so its error is not known"
        return Refused([Refusal("LIP018", node.name, node.op, message, hint)])

    def _uncovered(self) -> str | None:
        """Why the float32 error constants do not cover the stored program; ``None`` when they do."""
        if any(node.op in ("Conv", "ConvTranspose") for node in self.verdict.nodes) and CUDA in self.providers:
            return "cuDNN chooses convolution algorithms whose error the rule does not cover"
        kinds = {value.type for value in (*self.get_inputs(), *self.get_outputs())}
        if kinds & {"tensor(double)", "tensor(float16)", "tensor(bfloat16)"}:
            return "the stored program does not compute in float32"
        return None

    def _radius_rules(self) -> tuple[RadiusRule | None, RadiusRule | None]:
        """How margins become radii, and in adaptive mode how those of float32 do (``None``: it never answers)."""
        error = self._error_constants()
        if error is None or self._heads is None:
            return None, None
        stored = None if self._uncovered() else self.verdict.numeric_error.get("f32")
        if self.guarantee == "deployed" and self._swallows(error):
            raise _no_guarantee("the rounding error bound of its program is larger than any margin it can have")
        if stored is not None and self._swallows(stored):
            stored = None  # adaptive: float32 would never answer
        own = radius_rule(self._heads, error, self.guarantee)
        return own, None if stored is None else radius_rule(self._heads, error, self.guarantee, answering=stored)

    def _swallows(self, error: ErrorBound) -> bool:
        """Whether the error exceeds every margin of the real network: its gap at 0, and its growth L·‖x‖ from there."""
        assert self._heads is not None
        zero = {name: np.zeros_like(array) for name, array in probe_feeds(self._inputs).items()}
        program = self._stored_logits if self._double is None else self._double_logits
        logits = program(zero, self._heads)
        gap = float((logits.max(axis=1) - logits.min(axis=1) if len(self._heads) > 1 else np.abs(logits[:, 0])).max())
        meet = 4.0 if len(self._heads) > 1 else 2.0
        return bool(self._heads.max() <= meet * error.c1 and gap <= meet * error.c0)

    def _received(self, feeds: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        """The inputs in float64, and upper bounds of ‖x‖ per row.

        A NaN or an infinity among the values shows in the norm, and is an ``InputError``.
        """
        if self._plain_input is not None and self._native is not None:
            array, norms = self._native.widened(feeds[self._plain_input])
            wide = {self._plain_input: array}
        else:
            wide = widened(feeds)
            rows = flattened(wide)
            norms = input_norm_up(rows, self.norm, single=self._single) if len(rows) else np.zeros(0)
        if not math.isfinite(np.add.reduce(norms)):
            for spec in self._inputs:
                check_finite(feeds[spec.name], spec)
        return wide, norms

    def _class_bounds(self) -> Array:
        if self._heads is None:
            raise Refused([self.verdict.no_classes()])
        return self._heads

    def _in_one_call(self, feeds: dict[str, Array], pairwise: Array, wanted: float) -> Answered | None:
        """What ``_certified`` says, where the library does all of float32's arithmetic; ``None`` elsewhere."""
        if self._at_once is None or self._plain_input is None:
            return None
        given = feeds[self._plain_input]
        if not len(given):
            return None
        raw = engines.run(self._stored, self._output, feeds)
        found = self._at_once.rows(given, raw, wanted)
        if found is None:
            return None
        rows, norms, unsure = found
        logits = raw.astype(np.float64)
        if not unsure or self.certify == "f32":
            return rows, logits, named("f32", logits)
        return self._escalated(feeds, norms, pairwise, wanted, rows, logits)

    def _certified(self, feeds: dict[str, Array], pairwise: Array, wanted: float) -> Answered:
        """Answers, logits and the program (``"f64"`` or ``"f32"``) of every row."""
        wide, norms = self._received(feeds)
        rule = self._radius_rule
        assert rule is not None  # there are class bounds
        if self.certify == "f64" or (self.certify == "adaptive" and self._stored_rule is None):
            logits = self._double_logits(wide, pairwise)
            return rule.rows(logits, norms), logits, named("f64", logits)
        logits = self._stored_logits(feeds, pairwise)
        if self.certify == "adaptive":
            assert self._stored_rule is not None
            rows = self._stored_rule.rows(logits, norms)
            return self._escalated(wide, norms, pairwise, wanted, rows, logits)
        if self.certify == "f32":
            return rule.rows(logits, norms), logits, named("f32", logits)
        exact = rule.rows(self._double_logits(wide, pairwise), norms)
        return agreeing(exact, logits), logits, named("f32", logits)

    def _escalated(
        self, feeds: dict[str, Array], norms: Array, pairwise: Array, wanted: float, rows: CertifiedRows, logits: Array
    ) -> Answered:
        """float32's answers where it certifies as far as asked; float64 answers the other rows."""
        rule = self._radius_rule
        assert rule is not None  # there are class bounds
        rest = ~(rows.radius >= wanted) if wanted > 0.0 else ~(rows.radius > 0.0)
        if not rest.any():
            return rows, logits, named("f32", logits)
        if rest.all():
            logits = self._double_logits(feeds, pairwise)
            return rule.rows(logits, norms), logits, named("f64", logits)
        again = self._double_rows(feeds, rest, pairwise)
        escalated = rule.rows(again, norms[rest])
        program = named("f32", logits).copy()
        logits[rest], program[rest] = again, "f64"
        for old, new in zip(columns(rows), columns(escalated), strict=True):
            old[rest] = new
        return rows, logits, program

    def _double_rows(self, feeds: dict[str, Array], chosen: Array, pairwise: Array) -> Array:
        """Logits of the float64 program for some rows; a file that fixes its batch gets all of them."""
        if self._inputs[0].shape[0] is not None:
            return self._double_logits(feeds, pairwise)[chosen]
        return self._double_logits({name: array[chosen] for name, array in feeds.items()}, pairwise)

    def _stored_logits(self, feeds: dict[str, Array], pairwise: Array) -> Array:
        if not len(next(iter(feeds.values()))):
            return np.zeros((0, len(pairwise)))
        return scores(engines.run(self._stored, self._output, feeds), feeds)

    def _double_logits(self, feeds: dict[str, Array], pairwise: Array) -> Array:
        """Logits of the float64 program, a bounded number of rows at a time."""
        assert self._double is not None
        wide = widened(feeds)
        count = len(next(iter(wide.values())))
        step = self._rows_per_run if self._inputs[0].shape[0] is None else max(count, 1)
        if 0 < count <= step:
            return scores(engines.run(self._double, self._output, wide), wide)
        parts = [np.zeros((0, len(pairwise)))]
        for start in range(0, count, step):
            part = {name: array[start : start + step] for name, array in wide.items()}
            parts.append(scores(engines.run(self._double, self._output, part), part))
        return np.concatenate(parts)


def _check_options(certify: str, threads: int | None) -> None:
    if certify not in MODES:
        hint = f"one of {', '.join(MODES)}"
        raise InputError(f"certify = {certify!r} is not a mode of this version", hint=hint)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads must be a positive whole number, got {threads!r}")


def _name_of_output(verdict: Verdict) -> str:
    assert verdict.output is not None  # a verified verdict has one
    return verdict.output.name


def _no_guarantee(why: str, hint: str = "") -> Refused:
    return Refused([Refusal("LIP018", "", "", why, hint)])
