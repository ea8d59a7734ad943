"""The gRPC door: the Open Inference Protocol's six calls, in front of the same ``Service`` as REST.

Tensors come in typed ``contents`` or all in ``raw_input_contents``, and the answer comes as the request did (raw where
an output's type has no typed form). The client's deadline is the request's; a call that is cancelled leaves the queue.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson

from lipdeploy.errors import InputError
from lipdeploy.serve import auth, oip
from lipdeploy.serve.logs import event
from lipdeploy.serve.problems import RequestProblem, bad
from lipdeploy.serve.rpc_messages import METHODS, SERVICE
from lipdeploy.serve.service import Service

Array = np.ndarray[Any, Any]
Context = Any  # grpc.aio.ServicerContext: grpc has no types
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
#: The field of InferTensorContents that holds an element type. FP16 and BF16 have none, and travel raw.
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
#: The element type of each such field.
HOLDS = {
    "bool_contents": np.bool_, "int_contents": np.int32, "int64_contents": np.int64, "uint_contents": np.uint32,
    "uint64_contents": np.uint64, "fp32_contents": np.float32, "fp64_contents": np.float64,
}  # fmt: skip


class Door:
    """Handlers of one service; ``listening`` opens the port around them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._keys = auth.Keys(service.settings.api_keys)
        self._admin_keys = auth.Keys(service.settings.admin_keys)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The six calls for a gRPC server."""
        calls: Mapping[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, call),
                request_deserializer=METHODS[name][0].FromString,
                response_serializer=METHODS[name][1].SerializeToString,
            )
            for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _guarded(self, name: str, call: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """``call`` behind the key, its problems as gRPC statuses. Whether the server lives is no secret."""

        async def guarded(request: Any, context: Context) -> Any:
            try:
                if self._keys and name not in ("ServerLive", "ServerReady"):
                    auth.check(_metadata(context), self._keys, self._admin_keys)
                return await call(request, context)
            except RequestProblem as problem:
                trailing = () if problem.retry_after is None else (("retry-after", str(problem.retry_after)),)
                code = STATUS.get(problem.status, grpc.StatusCode.INTERNAL)
                await context.abort(code, problem.message, trailing)

        return guarded

    async def _server_live(self, request: Any, context: Context) -> Any:
        return METHODS["ServerLive"][1](live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        return METHODS["ServerReady"][1](ready=(await self.service.ready())["ready"])

    async def _model_ready(self, request: Any, context: Context) -> Any:
        state = await self.service.model_ready(request.name, request.version or None)
        return METHODS["ModelReady"][1](ready=state["ready"])

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        return METHODS["ServerMetadata"][1](**self.service.server_metadata())

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        return METHODS["ModelMetadata"][1](**self.service.model_metadata(request.name, request.version or None))

    async def _model_infer(self, request: Any, context: Context) -> Any:
        name, version = request.model_name, request.model_version or None
        try:
            read = _within(inference_request(request), context.time_remaining())
        except RequestProblem as problem:
            self.service.misfit(problem, name, version)
            raise
        pending = self.service.submit(name, version, read, client=self._client(context))
        answer = await self.service.answer(pending)
        return inference_response(answer, raw=bool(request.raw_input_contents))

    def _client(self, context: Context) -> str | None:
        if self.service.settings.max_client_rows is None:
            return None
        key = auth.given_key(_metadata(context)) if self._keys else None
        return f"key {key.decode('latin-1')}" if key is not None else f"address {_address(context.peer())}"


@contextlib.asynccontextmanager
async def listening(
    service: Service, address: str, credentials: grpc.ServerCredentials | None, *, shared: bool
) -> AsyncIterator[int]:
    """Answer gRPC at ``address`` meanwhile; the port. ``shared``: other processes listen there, too.

    At the end no call is accepted any more, and those that were get ``drain_seconds``. Raises ``InputError`` where the
    port cannot be had.
    """
    limit = service.settings.max_body_bytes
    options = [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(shared)),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((Door(service).handlers(),))
    try:
        secure = credentials is not None
        port = server.add_secure_port(address, credentials) if secure else server.add_insecure_port(address)
    except RuntimeError as error:
        raise InputError(f"cannot listen on {address} for gRPC: {error}", hint="choose another --grpc-port") from error
    await server.start()
    event("listening", grpc=f"{address.rpartition(':')[0]}:{port}", tls=secure)
    try:
        yield port
    finally:
        await server.stop(service.settings.drain_seconds)


def credentials(cert: str | None, key: str | None, client_ca: str | None) -> grpc.ServerCredentials | None:
    """TLS as for REST, from PEM files; ``None`` without."""
    if cert is None or key is None:
        return None
    pair = (Path(key).read_bytes(), Path(cert).read_bytes())
    ca = None if client_ca is None else Path(client_ca).read_bytes()
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


# Messages.


def inference_request(message: Any) -> oip.InferenceRequest:
    """The request in a ``ModelInferRequest``. Raises ``RequestProblem`` (400)."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise bad(f"there are {len(message.inputs)} inputs, and raw_input_contents has {len(raw)}")
    if not 0 < len(message.inputs) <= oip.MAX_INPUTS:
        raise bad(f"a request has between 1 and {oip.MAX_INPUTS} inputs")
    if len(message.id) > oip.MAX_ID:
        raise bad(f"'id' may have at most {oip.MAX_ID} characters")
    _no_twins([tensor.name for tensor in message.inputs], "inputs")
    _no_twins([output.name for output in message.outputs], "outputs")
    for output in message.outputs:
        oip.no_guarantees(output.parameters, f"output '{output.name[:64]}'")
    tensors = tuple(_tensor(tensor, raw[number] if raw else None) for number, tensor in enumerate(message.inputs))
    outputs = tuple(oip.Output(output.name, True) for output in message.outputs) or None
    given = oip.read_parameters(_parameters(message.parameters))
    return oip.InferenceRequest(tensors, message.id or None, outputs, True, **given)


def _no_twins(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        raise bad(f"two {what} have the same name")


def _tensor(tensor: Any, raw: bytes | None) -> oip.Tensor:
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if datatype not in oip.SIZES:
        raise bad(f"input '{name[:64]}': datatype '{datatype[:16]}' is not offered")
    if len(shape) > oip.MAX_RANK or not all(0 <= size <= oip.MAX_SIZE for size in shape):
        raise bad(f"input '{name[:64]}': 'shape' must be at most {oip.MAX_RANK} sizes ≥ 0")
    oip.no_guarantees(tensor.parameters, f"input '{name[:64]}'")
    if "shared_memory_region" in tensor.parameters:
        raise bad(f"input '{name[:64]}': shared memory is not offered")
    values = _typed(tensor, shape) if raw is None else _raw(name, datatype, shape, raw, tensor.HasField("contents"))
    return oip.Tensor(name, datatype, shape, values)


def _raw(name: str, datatype: str, shape: Sequence[int], raw: bytes, has_contents: bool) -> Array:
    if has_contents:
        raise bad(f"input '{name[:64]}' has contents beside raw_input_contents")
    expected = math.prod(shape) * oip.SIZES[datatype]
    if len(raw) != expected:
        raise bad(f"input '{name[:64]}': {datatype} {list(shape)} takes {expected} bytes, and {len(raw)} were sent")
    return oip.from_bytes(raw, datatype, shape, 0)


def _typed(tensor: Any, shape: tuple[int, ...]) -> Array:
    name, datatype = tensor.name[:64], tensor.datatype
    if datatype not in CONTENTS:
        raise bad(f"input '{name}': {datatype} has no typed form; send raw_input_contents")
    found = [field.name for field, _ in tensor.contents.ListFields()]
    if found not in ([], [CONTENTS[datatype]]):
        raise bad(f"input '{name}': {datatype} belongs into {CONTENTS[datatype]}, and {', '.join(found)} was sent")
    flat: Array = np.array(getattr(tensor.contents, CONTENTS[datatype]), HOLDS[CONTENTS[datatype]])
    if len(flat) != math.prod(shape):
        raise bad(f"input '{name}': shape {list(shape)}, and {len(flat)} values")
    values = flat.astype(oip.dtype_of(datatype))
    if values.dtype.kind in "iu" and not (values == flat).all():
        raise bad(f"input '{name}': a value does not fit into {datatype}")
    return values.reshape(shape)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    read = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise bad(f"parameter '{name[:64]}' has no value")
        read[name] = getattr(value, choice)
    return read


def _within(request: oip.InferenceRequest, remaining: float | None) -> oip.InferenceRequest:
    """The request with the client's deadline, where that comes first."""
    if remaining is None or (request.timeout is not None and request.timeout <= remaining):
        return request
    return replace(request, timeout=max(remaining, 0.0))


def inference_response(answer: oip.Answer, *, raw: bool) -> Any:
    """An answer as ``ModelInferResponse``."""
    raw = raw or any(datatype not in CONTENTS for _, datatype, _ in answer.outputs)
    described = orjson.loads(answer.prefix + b"}")
    response = METHODS["ModelInfer"][1](**described, id=answer.id or "")
    for name, text in orjson.loads(answer.parameters).items():
        response.parameters[name].string_param = text
    for name, datatype, values in answer.outputs:
        output = response.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw:
            response.raw_output_contents.append(values.tobytes())
        else:
            getattr(output.contents, CONTENTS[datatype]).extend(values.ravel().tolist())
    return response


def _metadata(context: Context) -> dict[bytes, bytes]:
    given = context.invocation_metadata() or ()
    return {key.encode(): value.encode() if isinstance(value, str) else value for key, value in given}


def _address(peer: str) -> str:
    """``ipv4:127.0.0.1:5000`` without the port, which changes from call to call."""
    return peer.rpartition(":")[0]
