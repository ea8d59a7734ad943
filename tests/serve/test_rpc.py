"""The gRPC door, asked by grpcio with our messages; others' clients ask in tests/conformance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy import CertifiedSession
from lipdeploy.serve import Service, Settings, model_sources, rpc
from lipdeploy.serve.problems import RequestProblem
from lipdeploy.serve.rpc_messages import METHODS, SERVICE

CLASSIFIER = """
<ir_version: 9, opset_import: ["": 20]>
classifier (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0.75, 0.0, 0.0, -0.5}> { y = MatMul (x, w) }
"""
Request, _ = METHODS["ModelInfer"]
Call = Callable[..., Awaitable[Any]]
PIN = "lipdeploy_require_certificate"
ROWS = np.array([[1.0, 0.25], [0.5, 3.0], [0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rpc") / "net.onnx"
    path.write_bytes(onnx.parser.parse_model(CLASSIFIER).SerializeToString())
    return path


async def opened(model: Path, **options: Any) -> AsyncIterator[Call]:
    service = Service(Settings(models=model_sources([model]), **options))
    await service.start()
    async with rpc.listening(service, "127.0.0.1:0", None, shared=False) as port:  # noqa: SIM117
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

            async def call(method: str, message: Any, **more: Any) -> Any:
                request, response = METHODS[method]
                stub = channel.unary_unary(
                    f"/{SERVICE}/{method}",
                    request_serializer=request.SerializeToString,
                    response_deserializer=response.FromString,
                )
                return await stub(message, timeout=more.pop("timeout", 20), **more)

            yield call
    await service.stop()


def ask(model: Path, script: Callable[[Call], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        async for call in opened(model, **options):
            return await script(call)

    return asyncio.run(main())


def infer_request(x: np.ndarray = ROWS, *, raw: bool = True, outputs: tuple[str, ...] = (), **parameters: str) -> Any:
    message = Request(model_name="net", id="seven")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    if raw:
        message.raw_input_contents.append(x.tobytes())
    else:
        tensor.contents.fp32_contents.extend(x.ravel().tolist())
    for name in outputs:
        message.outputs.add(name=name)
    for key, value in parameters.items():
        message.parameters[key].string_param = value
    return message


def columns(response: Any) -> dict[str, np.ndarray]:
    found = {}
    for number, output in enumerate(response.outputs):
        dtype = {"INT64": np.int64, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}[output.datatype]
        if response.raw_output_contents:
            flat = np.frombuffer(response.raw_output_contents[number], dtype)
        else:
            flat = np.array(getattr(output.contents, rpc.CONTENTS[output.datatype]), dtype)
        found[output.name] = flat.reshape(output.shape)
    return found


@pytest.mark.parametrize("raw", [True, False])
def test_answers_are_the_sessions(model: Path, raw: bool) -> None:
    message = infer_request(raw=raw, lipdeploy_epsilon="0.5", outputs=("label", "radius", "certified", "logits"))
    response = ask(model, lambda call: call("ModelInfer", message))
    expected = CertifiedSession(str(model)).predict(ROWS, epsilon=0.5)
    found = columns(response)
    assert list(found) == ["label", "radius", "certified", "logits"]
    assert bool(response.raw_output_contents) is raw
    np.testing.assert_array_equal(found["label"], expected.label)
    np.testing.assert_array_equal(found["certified"], expected.certified)
    np.testing.assert_array_equal(found["logits"], expected.logits)
    assert (found["radius"].astype(np.float64) <= expected.radius).all()
    np.testing.assert_allclose(found["radius"], expected.radius, rtol=1e-6)
    assert response.id == "seven" and response.model_name == "net" and response.model_version == "1"
    assert response.parameters["lipdeploy_guarantee"].string_param == "deployed"
    assert response.parameters["lipdeploy_certificate_sha256"].string_param == expected.certificate_sha256


def test_what_is_known_without_asking_for_an_answer(model: Path) -> None:
    async def script(call: Call) -> None:
        assert (await call("ServerLive", METHODS["ServerLive"][0]())).live
        assert (await call("ServerReady", METHODS["ServerReady"][0]())).ready
        assert (await call("ModelReady", METHODS["ModelReady"][0](name="net"))).ready
        server = await call("ServerMetadata", METHODS["ServerMetadata"][0]())
        assert server.name == "lipdeploy" and "lipdeploy_certificate" in server.extensions
        metadata = await call("ModelMetadata", METHODS["ModelMetadata"][0](name="net", version="1"))
        assert [(tensor.name, list(tensor.shape)) for tensor in metadata.inputs] == [("x", [-1, 2])]
        assert metadata.properties["lipdeploy_norm"] == "l2"

    ask(model, script)


def broken(change: Callable[[Any], Any]) -> Any:
    message = infer_request()
    change(message)
    return message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: setattr(m, "model_name", "other"), "NOT_FOUND"),
        (lambda m: setattr(m, "model_version", "9"), "NOT_FOUND"),
        (lambda m: m.raw_input_contents.append(b"more"), "INVALID_ARGUMENT"),
        (lambda m: m.raw_input_contents.__setitem__(0, b"short"), "INVALID_ARGUMENT"),
        (lambda m: m.raw_input_contents.pop(), "INVALID_ARGUMENT"),
        (lambda m: m.inputs.pop(), "INVALID_ARGUMENT"),
        (lambda m: m.inputs.add(name="x", datatype="FP32"), "INVALID_ARGUMENT"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1.0), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.inputs[0], "datatype", "BYTES"), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.inputs[0], "name", "z"), "INVALID_ARGUMENT"),
        (lambda m: m.inputs[0].shape.append(-1), "INVALID_ARGUMENT"),
        (lambda m: m.inputs[0].shape.extend([1] * 20), "INVALID_ARGUMENT"),
        (lambda m: m.outputs.add(name="nothing"), "INVALID_ARGUMENT"),
        (lambda m: (m.outputs.add(name="label"), m.outputs.add(name="label")), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.parameters["lipdeploy_epsilon"], "string_param", "-1"), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.parameters["lipdeploy_epsilon"], "double_param", float("nan")), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.inputs[0].parameters["lipdeploy_epsilon"], "double_param", 1.0), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.parameters["lipdeploy_epsylon"], "string_param", "1"), "INVALID_ARGUMENT"),
        (lambda m: m.parameters["empty"], "INVALID_ARGUMENT"),
        (lambda m: setattr(m, "id", "x" * 5000), "INVALID_ARGUMENT"),
        (lambda m: setattr(m.parameters[PIN], "string_param", "0" * 64), "FAILED_PRECONDITION"),
        (lambda m: m.raw_input_contents.__setitem__(0, (ROWS * np.nan).tobytes()), "INVALID_ARGUMENT"),
    ],
)  # fmt: skip
def test_malformed_requests(model: Path, change: Callable[[Any], Any], code: str) -> None:
    async def script(call: Call) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call("ModelInfer", broken(change))
        assert failure.value.code().name == code, failure.value
        assert failure.value.details()
        assert len((await call("ModelInfer", infer_request())).outputs) == 4  # and the server is well

    ask(model, script)


def test_keys(model: Path) -> None:
    key = "k" * 32

    async def script(call: Call) -> None:
        assert (await call("ServerLive", METHODS["ServerLive"][0]())).live
        for metadata in ((), (("authorization", "Bearer wrong"),), (("x-api-key", "wrong"),)):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await call("ModelInfer", infer_request(), metadata=metadata)
            assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for metadata in ((("authorization", f"Bearer {key}"),), (("x-api-key", key),)):
            assert (await call("ModelInfer", infer_request(), metadata=metadata)).outputs

    ask(model, script, api_keys=(key,))


def test_a_message_may_only_be_so_long(model: Path) -> None:
    async def script(call: Call) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call("ModelInfer", infer_request(np.zeros((4096, 2), np.float32)))
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    ask(model, script, max_body_bytes=1024)


def test_more_rows_than_may_wait(model: Path) -> None:
    async def script(call: Call) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call("ModelInfer", infer_request(np.zeros((9, 2), np.float32)))
        assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)

    ask(model, script, max_queue_rows=4, max_batch_rows=4)


def test_many_at_once(model: Path) -> None:
    async def script(call: Call) -> None:
        batches = [np.full((1 + number % 3, 2), number, np.float32) for number in range(40)]
        responses = await asyncio.gather(*(call("ModelInfer", infer_request(x, outputs=("logits",))) for x in batches))
        for x, response in zip(batches, responses, strict=True):
            np.testing.assert_array_equal(columns(response)["logits"], x.astype(np.float64) * [0.75, -0.5])

    ask(model, script)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_mistake_of_the_client(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        message = Request.FromString(data)
    except DecodeError:
        return
    try:
        read = rpc.inference_request(message)
    except RequestProblem as problem:
        assert problem.status == 400
    else:
        assert read.tensors


def test_integers_that_do_not_fit_are_not_wrapped() -> None:
    message = Request(model_name="net")
    message.inputs.add(name="x", datatype="UINT8", shape=[1]).contents.uint_contents.append(300)
    with pytest.raises(RequestProblem, match="does not fit"):
        rpc.inference_request(message)
    message = Request(model_name="net")
    message.inputs.add(name="x", datatype="UINT64", shape=[2]).contents.uint64_contents.extend([2**64 - 1, 1])
    np.testing.assert_array_equal(rpc.inference_request(message).tensors[0].values, np.array([2**64 - 1, 1], np.uint64))
