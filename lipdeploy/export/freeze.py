"""From the user's module to one that torch's exporter can write: constants baked, layers adapted, preprocessing in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lipdeploy.errors import InputError
from lipdeploy.export.adapters import replace_layers
from lipdeploy.export.adapters.hooks import copy_module, remove_hooks
from lipdeploy.export.options import ExportOptions, PerChannel
from lipdeploy.nn import bake

TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64, "uint8": torch.uint8}


class Preprocess(nn.Module):
    """Cast, then x·scale, then (x − mean)/std: what stands between the caller's units and the network's."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, options: ExportOptions, dtype: torch.dtype, example: Tensor) -> None:
        super().__init__()
        self.dtype = dtype
        self.input_scale = None if options.input_scale is None else float(options.input_scale)
        self.register_buffer("mean", _per_channel("mean", options.mean, dtype, example))
        self.register_buffer("std", _per_channel("std", options.std, dtype, example))

    def forward(self, x: Tensor) -> Tensor:
        """Any input dtype to the network's floating type, same shape."""
        x = x.to(self.dtype)
        if self.input_scale is not None:
            x = x * self.input_scale
        if self.mean is not None:
            x = x - self.mean
        if self.std is not None:
            x = x / self.std
        return x


class Program(nn.Module):
    """Preprocessing, then the network: the function that the file will hold."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network returns."""
        output: Tensor = self.network(*(self.preprocess(x) for x in inputs))
        return output


def reference_program(module: nn.Module, options: ExportOptions, inputs: Sequence[Tensor]) -> Program:
    """A copy of ``module`` in evaluation mode and in the export's dtype, behind the preprocessing.

    Raises ``InputError`` when the module cannot be copied, is not in float32 or float64, or when the preprocessing
    does not fit its input.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(module).__name__}", hint="pass the network itself")
    _require_no_script(module)
    _require_numbers(module)
    try:
        network = copy_module(module)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied: {error}", hint="detach tensor attributes"
        ) from error
    if options.preprocesses and len(inputs) > 1:
        raise InputError("preprocessing options need a network with one input", hint="preprocess inside the network")
    dtype = _network_dtype(network, options)
    if dtype == torch.float32 and options.input_dtype == "float64":
        raise InputError("input_dtype='float64' would be rounded by a float32 network", hint="pass dtype='float64' too")
    return Program(_in_dtype(network, dtype), Preprocess(options, dtype, inputs[0]))


def _require_numbers(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        for tensor in (*layer._parameters.values(), *layer._buffers.values()):
            if tensor is not None and (is_lazy(tensor) or tensor.is_meta):
                raise InputError(
                    f"layer '{path}' ({type(layer).__name__}) has no numbers yet",
                    hint="load its weights, or run the network on one batch before",
                )


def _in_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``network.to(dtype)``, which would take the real part of complex numbers."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)

    converted: nn.Module = network._apply(convert)  # type: ignore[no-untyped-call]
    return converted


def _require_no_script(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            what = f"layer '{path}'" if path else "the network"
            raise InputError(
                f"{what} is a ScriptModule (torch.jit.script or torch.jit.trace), which torch cannot export",
                hint="export the original nn.Module",
            )


def freeze(program: Program) -> Program:
    """Bake every parametrisation of ``program`` as evaluation mode uses it, and replace the layers that need it."""
    try:
        remove_hooks(program.network)
        network = replace_layers(_bake(program.network))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"a layer's weights could not be made constant: {error}") from error
    return Program(network.requires_grad_(False), program.preprocess)


def _bake(network: nn.Module) -> nn.Module:
    # A loaded .pt2 program holds constants already, and its module has no evaluation mode to enter.
    return network if isinstance(network, torch.fx.GraphModule) else bake(network)


def _network_dtype(network: nn.Module, options: ExportOptions) -> torch.dtype:
    if options.computes_in is not None:
        return TORCH_DTYPES[options.computes_in]
    tensors = [*network.parameters(), *network.buffers()]
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} or {torch.float32}
    if len(found) == 1 and found <= {torch.float32, torch.float64}:
        return found.pop()
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
    known = {"float16", "bfloat16"} & {names}
    hint = f"pass dtype='float32' (--dtype float32), or {', '.join(known) or 'float64'}"
    raise InputError(f"the network's weights are {names}", hint=hint)


def _per_channel(name: str, value: PerChannel, dtype: torch.dtype, example: Tensor) -> Tensor | None:
    if value is None:
        return None
    array = np.asarray(value, dtype=np.float64)
    if array.size == 1:
        return torch.tensor(float(array.reshape(())), dtype=dtype)
    channels = example.shape[1] if example.ndim > 1 else 0
    if array.ndim != 1 or array.size != channels:
        raise InputError(
            f"{name} has {array.size} values, the input has {channels} channels on axis 1",
            hint=f"give one number, or {channels}",
        )
    return torch.tensor(array, dtype=dtype).view(1, -1, *[1] * (example.ndim - 2))
