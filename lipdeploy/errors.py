"""Every error that lipdeploy raises on purpose.

::

    LipdeployError            exit 5   something inside lipdeploy went wrong
    ├── LimitExceeded         exit 1   proven, but above the limit that was asked for
    ├── InputError            exit 2   unreadable file, wrong shape or dtype, bad option
    ├── Refused               exit 3   cannot be proven; ``.refusals`` says which node and why
    └── IntegrityError        exit 4   digest, signature, library or provider does not match

A refusal carries a stable code; ``lipdeploy explain CODE`` prints its entry in ``REASONS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """Why a model, or a request about it, can be refused: the entry behind a code."""

    title: str
    explanation: str
    hint: str


REASONS: dict[str, Reason] = {
    "LIP001": Reason(
        "unknown operator",
        "The verifier has no rule for this operator, so nothing is known about how far it can move its output.",
        "rewrite the layer with operators listed in docs/rules.md, or open an issue that names it",
    ),
    "LIP002": Reason(
        "unsupported attribute or input",
        "The operator is known, but not with this attribute, this number of inputs or this combination of them.",
        "see the operator's preconditions in docs/rules.md",
    ),
    "LIP003": Reason(
        "non-finite constant",
        "A weight or another constant is NaN or infinite; no bound holds for such a network.",
        "retrain or repair the checkpoint, then export again",
    ),
    "LIP004": Reason(
        "product of two activations",
        "Both operands depend on the input. Products, quotients and attention are not globally Lipschitz.",
        "replace the product by a 1-Lipschitz layer",
    ),
    "LIP005": Reason(
        "samples of a batch are mixed",
        "Axis 0 is the batch axis and must stay untouched, else one sample's answer depends on another's.",
        "keep axis 0 in place in every reshape, transpose, concatenation and reduction",
    ),
    "LIP006": Reason(
        "unknown size",
        "The proof needs this dimension, and the file leaves it open.",
        "export with a static shape; the batch axis may be dynamic, height and width where all operators allow it",
    ),
    "LIP007": Reason(
        "function body is not the operator's own",
        "The file defines a function under a lipdeploy operator's name, and its body is not the generated one. "
        "A runtime without our library would run that body instead of the operator that was judged.",
        "export again with this version of lipdeploy",
    ),
    "LIP008": Reason(
        "function shadows an operator",
        "A model-local function in a standard domain, with an overload, or calling itself would run in place of "
        "the operator whose name it takes.",
        "inline the model's functions before verification (onnx.inliner)",
    ),
    "LIP009": Reason(
        "training-mode operator",
        "In training mode the output depends on batch statistics or on random numbers.",
        "call .eval() on the network before export",
    ),
    "LIP010": Reason(
        "operator is not globally Lipschitz",
        "No finite constant holds for this operator over all inputs.",
        "replace it by a Lipschitz layer, or end the network before it",
    ),
    "LIP011": Reason(
        "no proof in this norm",
        "The operator has a rule, but none for the norm that was asked for.",
        "verify in another norm (--norm l2)",
    ),
    "LIP012": Reason(
        "external data not accepted",
        "External data must lie beside the model, inside its folder, in regular files of the stated size and checksum.",
        "save the model with its data file in the same folder, or as one file",
    ),
    "LIP013": Reason(
        "malformed graph",
        "The graph is not a well-formed ONNX graph: names, order, types or sizes contradict one another.",
        "run onnx.checker.check_model on the file and export again",
    ),
    "LIP014": Reason(
        "the proof did not close",
        "Numbers overflowed or a factorisation failed, so no bound could be proven for this node.",
        "check the scale of the weights",
    ),
    "LIP015": Reason(
        "inexact conversion",
        "This Cast changes values (a wide integer to a float, a float to an integer), so its output is not "
        "a Lipschitz function of its input.",
        "feed floating-point input, or an integer type that the float type holds exactly",
    ),
    "LIP016": Reason(
        "which output?",
        "The graph has several outputs, and a certificate is about one.",
        "name it with --graph-output NAME (output_name= in Python)",
    ),
    "LIP017": Reason(
        "constant could not be evaluated exactly",
        "A constant is computed inside the graph by an operation that rounds, so each runtime makes its own; what is "
        "proven must be what runs.",
        "store the computed constant: export with lipdeploy export or torch.onnx.export(dynamo=True), or fold the file "
        "with ONNX Runtime (SessionOptions.optimized_model_filepath, ORT_ENABLE_BASIC)",
    ),
    "LIP018": Reason(
        "no deployed guarantee",
        "The rounding of an operator in this program is unknown, or its bound swallows every margin, so the radius "
        "cannot be promised for the float program that runs.",
        "replace the operator by one whose rounding is known (docs/rules.md), or use session.run without a guarantee",
    ),
    "LIP019": Reason(
        "output is not a class score",
        "Labels and radii need an output of shape (batch, classes), or (batch, 1) with a score that can change sign.",
        "export the scores, or use session.run and session.output_band for other outputs",
    ),
    "LIP020": Reason(
        "unsupported version",
        "The file's IR version or an operator-set version lies outside what the rules were written for.",
        "export with opset 17 to 23",
    ),
    "LIP021": Reason(
        "unsupported element type",
        "A tensor on the path from input to output has an element type that no rule covers.",
        "export in float32 or float64",
    ),
    "LIP022": Reason(
        "certificate contradicts the model",
        "The certificate beside the model is about other bytes, is malformed, or claims less than what is proven.",
        "export the model again, or write a new certificate with --write-certificate",
    ),
    "LIP023": Reason(
        "not signed by the required key",
        "There is no signature beside the model, it was made with another key, or it is about other bytes.",
        "sign what is deployed: lipdeploy sign MODEL --key PRIVATE.pem",
    ),
    "LIP024": Reason(
        "too large to prove",
        "A tensor, or the work that its proof takes, lies above a fixed limit: a small file can describe sizes that no "
        "machine can work through, and a check must end.",
        "verify at a smaller input size, or end the network before this node",
    ),
}


@dataclass(frozen=True)
class Refusal:
    """One thing that could not be proven: where it is and what to try."""

    code: str
    node: str
    op: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.hint:
            object.__setattr__(self, "hint", REASONS[self.code].hint)

    def to_json(self) -> dict[str, str]:
        """The object of the ``refusals`` list in ``lipdeploy/verify-report/v1``."""
        return {"code": self.code, "node": self.node, "op": self.op, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        where = f"node '{self.node}' ({self.op}): " if self.op else (f"'{self.node}': " if self.node else "")
        return f"{self.code} {where}{self.message}"


class LipdeployError(Exception):
    """Base of all deliberate errors: ``code`` for machines, ``exit_code`` for shells, ``hint`` for people."""

    exit_code = 5

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint


class LimitExceeded(LipdeployError):
    """The bound was proven and lies above the limit. ``verdict``, a ``Verdict`` or ``None``, holds the proof."""

    exit_code = 1

    def __init__(self, message: str, *, code: str = "", hint: str = "", verdict: Any = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.verdict = verdict


class InputError(LipdeployError):
    """What the caller gave cannot be used: a file, a shape, a dtype, an option."""

    exit_code = 2


class Refused(LipdeployError):
    """Nothing could be proven. ``refusals`` lists every reason that was found."""

    exit_code = 3

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        first = self.refusals[0]
        more = f" (and {len(self.refusals) - 1} more)" if len(self.refusals) > 1 else ""
        super().__init__(f"{first}{more}", code=first.code, hint=first.hint)

    def __reduce__(self) -> tuple[type[Refused], tuple[tuple[Refusal, ...]]]:
        """Pickle the reasons; an exception's own way would hand the message to ``__init__``."""
        return type(self), (self.refusals,)


class IntegrityError(LipdeployError):
    """What is here is not what was certified, or the exported file does not compute what its module computes."""

    exit_code = 4
