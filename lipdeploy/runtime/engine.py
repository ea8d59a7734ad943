"""Opening ONNX Runtime sessions so that what runs is what was verified."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from lipdeploy.errors import InputError, IntegrityError, Refusal, Refused
from lipdeploy.runtime.executed import check_executed
from lipdeploy.runtime.library import REINSTALL, OperatorLibrary
from lipdeploy.runtime.optimised import check_optimised
from lipdeploy.runtime.providers import CPU, Provider, check_obtained

Array = np.ndarray[Any, Any]
BYTES_LIMIT = 2**31 - 1
HEAVY = 2**20  # bytes of a model whose weights are worth a second opening
SILENT, WARNING = 4, 2
LEVELS = onnxruntime.GraphOptimizationLevel
#: From the highest; what they do was read and tested for the CPU provider only.
OPTIMISATIONS = (LEVELS.ORT_ENABLE_ALL, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_BASIC)
Check = Callable[[onnx.ModelProto, onnx.ModelProto, str], None]
LOAD_ERRORS = (
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NotImplemented,
    native.RuntimeException,
)


@dataclass(frozen=True)
class Engine:
    """How sessions are opened: providers with pinned options, threads, operator library.

    ``spinning``: idle worker threads wait in a loop, which answers sooner and doubles what a server spends.
    """

    providers: tuple[Provider, ...]
    threads: int | None
    library: OperatorLibrary | None
    spinning: bool = True

    @property
    def double_products(self) -> bool:
        """Whether the float64 program may use the library's own products: they are there, and the CPU runs it."""
        return self._on_cpu and self.library is not None and self.library.double_products

    @property
    def _on_cpu(self) -> bool:
        return all(name == CPU for name, _ in self.providers)

    def open(self, model: onnx.ModelProto, what: str) -> onnxruntime.InferenceSession:
        """A session on exactly this model; checks providers and the graph that ONNX Runtime really executes.

        The highest level of graph optimisation is kept at which the executed graph is the verified one (design §1.4).
        Raises ``IntegrityError`` when either differs, ``Refused`` (LIP018) when a kernel is missing, ``InputError``
        when ONNX Runtime cannot load the model at all. ``what`` names the program in messages.
        """
        data = _serialized(model)
        for level in OPTIMISATIONS if self._on_cpu else ():
            with contextlib.suppress(IntegrityError, InputError, Refused):  # the next lower level, then
                return self._open_at(level, data, model, what, check_optimised)
        return self._open_at(LEVELS.ORT_DISABLE_ALL, data, model, what, check_executed)

    def open_to_compare(self, model: onnx.ModelProto, what: str) -> onnxruntime.InferenceSession:
        """A session whose answers are only held against those of a checked one: nothing is optimised, nothing read."""
        return self._create(LEVELS.ORT_DISABLE_ALL, _serialized(model), "", what)

    def _open_at(
        self, level: onnxruntime.GraphOptimizationLevel, data: bytes, model: onnx.ModelProto, what: str, check: Check
    ) -> onnxruntime.InferenceSession:
        with _scratch_file() as dump:
            session = self._create(level, data, dump, what)
            check_obtained(session, self.providers)
            check(model, onnx.load(dump), what)
        return self._lighter(session, level, data, what) if self._on_cpu and len(data) > HEAVY else session

    def _lighter(
        self,
        checked: onnxruntime.InferenceSession,
        level: onnxruntime.GraphOptimizationLevel,
        data: bytes,
        what: str,
    ) -> onnxruntime.InferenceSession:
        """The session that ``checked`` is, without the second copy of all weights that dumping its graph leaves in it.

        The same bytes under the same options make the same program; a probe must give the same bits.
        """
        session = self._create(level, data, "", what)
        check_obtained(session, self.providers)
        feeds = _probe(session)
        if feeds is None:
            return checked
        same = zip(checked.run(None, feeds), session.run(None, feeds), strict=True)
        if not all(one.tobytes() == other.tobytes() for one, other in same):
            raise IntegrityError(f"{what}: the graph that was checked and the one that runs give different bits")
        return session

    def _create(
        self, level: onnxruntime.GraphOptimizationLevel, data: bytes, dump: str, what: str
    ) -> onnxruntime.InferenceSession:
        options = self._options(level, dump)
        names, settings = [name for name, _ in self.providers], [dict(given) for _, given in self.providers]
        try:
            with contextlib.nullcontext() if self._on_cpu else _silence():
                session = onnxruntime.InferenceSession(
                    data, options, providers=names, provider_options=settings, enable_fallback=0
                )
        except native.NotImplemented as error:
            message = f"{what}: ONNX Runtime has no kernel: {error}"
            hint = "use another certify mode, or replace the operator"
            raise Refused([Refusal("LIP018", "", "", message, hint)]) from error
        except LOAD_ERRORS as error:
            raise InputError(f"{what}: ONNX Runtime cannot load the model: {error}") from error
        session._model_bytes = None  # kept for a fallback that is switched off
        return session

    def _options(self, level: onnxruntime.GraphOptimizationLevel, dump: str) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        if dump:
            options.optimized_model_filepath = dump
        options.use_deterministic_compute = True
        options.log_severity_level = SILENT
        options.add_session_config_entry("session.set_denormal_as_zero", "0")
        options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
        # Stored integers are widened by DequantizeLinear and never fused into products of integers.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.library is not None:
            try:
                options.register_custom_ops_library(self.library.path)
            except LOAD_ERRORS as error:
                message = f"ONNX Runtime does not accept the operator library {self.library.path}: {error}"
                raise IntegrityError(message, hint=REINSTALL) from error
        return options


def _probe(session: onnxruntime.InferenceSession) -> dict[str, Array] | None:
    """Two rows for every input (as many as the file fixes); ``None`` where a size is open, or a type unusual."""
    feeds = {}
    for spec in session.get_inputs():
        first, *sizes = spec.shape
        if spec.type not in PROBED or not all(isinstance(size, int) for size in sizes):
            return None
        shape = (first if isinstance(first, int) else 2, *sizes)
        random = np.random.default_rng(0)
        feeds[spec.name] = (random.standard_normal(shape) * 3.0).astype(PROBED[spec.type])
    return feeds


PROBED = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """A provider that does not load is told by an exception (``check_obtained``), not by lines on stderr."""
    onnxruntime.set_default_logger_severity(SILENT)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(WARNING)


@contextlib.contextmanager
def _scratch_file() -> Iterator[str]:
    """A path to write to: in memory where the system can, so that a read-only disk is no obstacle."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("lipdeploy-executed-graph")
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="lipdeploy-") as folder:
            yield os.path.join(folder, "executed.onnx")


def _serialized(model: onnx.ModelProto) -> bytes:
    if model.ByteSize() > BYTES_LIMIT:
        raise InputError(
            f"the program takes {model.ByteSize()} bytes, more than ONNX Runtime reads from memory (2 GiB)",
            hint="a smaller model, or certify='f32' (the float64 program is twice as large)",
        )
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def run(session: onnxruntime.InferenceSession, output: str, feeds: dict[str, Array]) -> Array:
    """One output of one call; ONNX Runtime's complaint about an input becomes an ``InputError``."""
    try:
        result: Array = session.run([output], feeds)[0]
    except (native.InvalidArgument, native.Fail, native.RuntimeException) as error:
        raise InputError(f"ONNX Runtime could not run this input: {error}") from error
    return result


def give_memory_back() -> None:
    """Return to the system what opening a large model has freed: several times its size, which glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
