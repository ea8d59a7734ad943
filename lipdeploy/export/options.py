"""The options of one export, checked once, before torch does any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lipdeploy.errors import InputError
from lipdeploy.verify.norms import norm_pair

OPSETS = range(17, 24)
DTYPES = ("float32", "float64", "float16", "bfloat16")
FIRST_WITH_INT8 = 19  # of whose DequantizeLinear ONNX's reference evaluator, the standard of parity, has a program
INPUT_DTYPES = ("float32", "float64", "uint8")
EXTERNAL_DATA_BYTES = 1_500_000_000

PerChannel = float | Sequence[float] | None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What ``export`` was asked for; ``check`` has accepted it."""

    path: Path
    norm: str = "l2"
    max_lipschitz: float | None = None
    normalize: bool = False
    opset: int = 20
    mean: PerChannel = None
    std: PerChannel = None
    input_scale: float | None = None
    input_dtype: str = "float32"
    class_names: tuple[str, ...] = ()
    dynamic_batch: bool = True
    dtype: str | None = None
    weights: str | None = None
    standard_ops: bool = False
    output_name: str | None = None
    tolerance: float | None = None
    external_data_bytes: int = EXTERNAL_DATA_BYTES

    @property
    def certificate_path(self) -> Path:
        """Where the certificate goes: beside the model, same stem."""
        return self.path.with_suffix(".cert.json")

    @property
    def data_path(self) -> Path:
        """Where the weights of a large model go: beside the model."""
        return self.path.with_name(f"{self.path.name}.data")

    @property
    def preprocesses(self) -> bool:
        """Whether anything stands between the caller's tensor and the network."""
        given = (self.mean, self.std, self.input_scale)
        return any(value is not None for value in given)

    @property
    def storage(self) -> str | None:
        """The format of the linear layers' weights where it is not the one that the program computes in."""
        return self.dtype if self.dtype in ("float16", "bfloat16") else self.weights

    @property
    def computes_in(self) -> str | None:
        """What the program computes in; ``None``: what the network does."""
        return self.dtype if self.storage is None else "float32"

    def check(self) -> None:
        """Raise ``InputError`` for the first option that cannot be used."""
        self._check_path()
        self._check_choices()
        self._check_numbers()

    def _check_path(self) -> None:
        if self.path.suffix != ".onnx":
            raise InputError(f"the output file must end in .onnx, got {self.path.name!r}", hint="write to model.onnx")
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder", hint="name a file in it, such as model.onnx")
        paths = (self.path, self.certificate_path, self.data_path)
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            hint = "remove the link beside the model"
            raise InputError(f"{self.path} and a file beside it are links to one file", hint=hint)
        for path in paths:
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is in the way: it is no file", hint="move it, or give the model another name")
            parent = Path(os.path.realpath(path)).parent
            if not parent.is_dir():
                raise InputError(f"the folder {parent} does not exist", hint="create it first")

    def _check_choices(self) -> None:
        norm_pair(self.norm)
        if self.opset not in OPSETS:
            raise InputError(f"opset {self.opset} is not supported", hint="choose 17 to 23; the default is 20")
        if self.dtype is not None and self.dtype not in DTYPES:
            hint = "pass weights='int8' (--weights int8)" if self.dtype == "int8" else f"choose {', '.join(DTYPES)}"
            raise InputError(f"dtype={self.dtype!r} is unknown", hint=hint)
        if self.weights not in (None, "int8"):
            raise InputError(
                f"weights={self.weights!r} is unknown", hint="int8, or dtype='float16' or 'bfloat16' (--dtype)"
            )
        if self.weights is not None and self.opset < FIRST_WITH_INT8:
            raise InputError(
                f"weights={self.weights!r} need opset {FIRST_WITH_INT8} or later",
                hint=f"pass opset={FIRST_WITH_INT8} (--opset {FIRST_WITH_INT8}) or leave it out",
            )
        if self.weights is not None and self.dtype not in (None, "float32"):
            raise InputError(
                f"weights={self.weights!r} are for a float32 program, not dtype={self.dtype!r}", hint="leave dtype out"
            )
        if self.input_dtype not in INPUT_DTYPES:
            raise InputError(f"input_dtype={self.input_dtype!r} is unknown", hint="choose float32, float64 or uint8")

    def _check_numbers(self) -> None:
        for name in ("mean", "std", "input_scale"):
            value = getattr(self, name)
            if value is not None and not np.all(np.isfinite(np.asarray(value, dtype=np.float64))):
                raise InputError(f"{name} must be finite, got {value!r}")
        if self.std is not None and not np.all(np.asarray(self.std, dtype=np.float64) > 0):
            raise InputError(f"std must be positive, got {self.std!r}")
        if self.input_scale is not None and self.input_scale == 0:
            raise InputError("input_scale must not be 0")
        for name in ("max_lipschitz", "tolerance"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a positive finite number, got {value!r}")
        if any(not isinstance(name, str) for name in self.class_names):
            raise InputError("class_names must be strings")
