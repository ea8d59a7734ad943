"""lipdeploy: export, verify and serve Lipschitz neural networks with proven radii.

::

    import lipdeploy as lip

    result = lip.export(module, example_input, "model.onnx", norm="l2")
    verdict = lip.verify("model.onnx", max_lipschitz=1.0)
    session = lip.CertifiedSession("model.onnx")

Every public name is loaded on first use (PEP 562), so that ``import lipdeploy`` loads neither torch, onnx nor ONNX
Runtime. ``lip.export`` and ``lip.verify`` are the packages of the same names; calling one calls its main function.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lipdeploy.errors import InputError, IntegrityError, LimitExceeded, LipdeployError, Refusal, Refused

if TYPE_CHECKING:
    from lipdeploy.export import ExportResult, export
    from lipdeploy.runtime import CertifiedPrediction, CertifiedSession
    from lipdeploy.verify import Verdict, verify

__all__ = [
    "CertifiedPrediction",
    "CertifiedSession",
    "ExportResult",
    "InputError",
    "IntegrityError",
    "LimitExceeded",
    "LipdeployError",
    "Refusal",
    "Refused",
    "Verdict",
    "__version__",
    "export",
    "verify",
]

_HOMES = {
    "CertifiedPrediction": "lipdeploy.runtime",
    "CertifiedSession": "lipdeploy.runtime",
    "ExportResult": "lipdeploy.export",
    "Verdict": "lipdeploy.verify",
}
_CALLABLE_PACKAGES = ("export", "verify")


class _CallablePackage(ModuleType):
    """A package that can be called like the function that carries its name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)


class _Root(ModuleType):
    """The root package: makes ``export`` and ``verify`` callable at the moment the import system binds them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLABLE_PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root


def _version() -> str:
    # importlib.metadata is slow to import, so only those who ask for the version pay for it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lipdeploy")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0.0.0+checkout"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _CALLABLE_PACKAGES:
        value = import_module(f"lipdeploy.{name}")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'lipdeploy' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
