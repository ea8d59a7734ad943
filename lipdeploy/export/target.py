"""What ``lipdeploy export TARGET`` names: a factory in a package or a file, or a ``.pt2`` program."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lipdeploy.errors import InputError

FORMS = "package.module:factory, file.py:factory or program.pt2"


def load_target(target: str, checkpoint: str | os.PathLike[str] | None = None) -> nn.Module:
    """The network that ``target`` names, with the checkpoint's weights.

    A factory is called without arguments and returns a ``torch.nn.Module``. The checkpoint is a state dict (or a dict
    that holds one under ``state_dict`` or ``model``), read with ``weights_only=True`` and loaded strictly.

    Raises ``InputError`` for whatever is missing, fails or does not fit.
    """
    if target.endswith(".pt2"):
        if checkpoint is not None:
            raise InputError("a .pt2 program holds its own weights", hint="leave --checkpoint out")
        return _load_program(Path(target))
    module_name, separator, name = target.rpartition(":")
    if not separator or not module_name or not name:
        weights = target.endswith((".pt", ".pth", ".ckpt", ".safetensors"))
        hint = (
            "weights go in by --checkpoint FILE, beside the code that builds the network: "
            if weights
            else "write it as "
        )
        raise InputError(f"cannot read the target {target!r}", hint=hint + FORMS)
    network = _call(_factory(_import(module_name), name, module_name), target)
    if checkpoint is not None:
        _load_weights(network, Path(checkpoint))
    return network


def _load_program(path: Path) -> nn.Module:
    _require_file(path)
    log = logging.getLogger("torch.export")  # it prints a traceback before it raises
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise InputError(
            f"{path} is not a readable torch.export program: {_line(error)}",
            hint="write it with torch.export.save, with the same version of torch",
        ) from error
    finally:
        log.setLevel(level)


def _import(name: str) -> ModuleType:
    try:
        return _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"importing {name} failed: {type(error).__name__}: {_line(error)}",
            hint="run it in Python first to see the whole traceback",
        ) from error


def _import_module(name: str) -> ModuleType:
    # Like ``python -m``: what lies in the current folder can be named.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"there is no module {error.name!r}", hint=f"write the target as {FORMS}") from error
        raise


def _import_file(path: Path) -> ModuleType:
    _require_file(path)
    digest = hashlib.sha256(os.fspath(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"lipdeploy_target_{digest}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    folder = os.fspath(path.resolve().parent)
    if folder not in sys.path:  # its siblings, as when the file is run
        sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _factory(module: ModuleType, name: str, where: str) -> Callable[[], Any] | nn.Module:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = sorted(
                (getattr(value, "__module__", "") != module.__name__, label)  # its own before what it imports
                for label, value in vars(module).items()
                if callable(value) and not label.startswith("_")
            )
            hint = (
                f"it has: {', '.join(label for _, label in known[:10])}"
                if known
                else "define a function that returns the network"
            )
            raise InputError(f"{where} has no {name!r}", hint=hint)
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{where}:{name} is not callable", hint="name a function that returns the network")
    factory: Callable[[], Any] = found
    return factory


def _call(factory: Callable[[], Any] | nn.Module, target: str) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    try:
        network = factory()
    except Exception as error:
        raise InputError(
            f"{target} raised {type(error).__name__}: {_line(error)}", hint="a factory is called without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{target} returned {type(network).__name__}", hint="a factory must return a torch.nn.Module")
    return network


def _load_weights(network: nn.Module, path: Path) -> None:
    _require_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights, and loading it could run code",
            hint="save only the weights: torch.save(module.state_dict(), path)",
        ) from error
    except Exception as error:
        raise InputError(
            f"{path} is not a readable checkpoint: {_line(error)}", hint="write it with torch.save(state_dict, path)"
        ) from error
    state = _state_dict(state, path)
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} does not fit the network: {_mismatch(network, state, error)}",
            hint=_how_to_fit(network, state),
        ) from error


def _state_dict(state: Any, path: Path) -> dict[str, Any]:
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} holds no state dict", hint="save module.state_dict()")
    return state


def _mismatch(network: nn.Module, state: dict[str, Any], error: Exception) -> str:
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the network's is {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if isinstance(own[key], torch.Tensor)
        and isinstance(state[key], torch.Tensor)
        and own[key].shape != state[key].shape
    ]
    parts = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unexpected {_some(unexpected)}"] if unexpected else []),
        *sorted(shapes)[:3],
    ]
    return "; ".join(parts) or _line(error)


def _how_to_fit(network: nn.Module, state: dict[str, Any]) -> str:
    """Weights of a wrapped network, and those among other things, are the usual reasons."""
    own = set(network.state_dict())
    for prefix in ("module.", "_orig_mod.", "model.", "net.", "network."):
        if own <= {key.removeprefix(prefix) for key in state if key.startswith(prefix)}:
            return f"the keys begin with '{prefix}': save the state_dict of the network inside"
    inner = [key for key, value in state.items() if isinstance(value, dict) and own <= value.keys()]
    if inner:
        return f"the weights are under '{inner[0]}': save that dictionary alone, or under 'state_dict'"
    return "build the network with the options that it was trained with"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint="check the path")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
