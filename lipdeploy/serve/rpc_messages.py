"""The Open Inference Protocol's gRPC messages (package ``inference``), built from the tables below at import.

Code that protoc generates runs only with the protobuf versions it was generated for, and hosts bring their own; a
descriptor made here runs with all of them. Field names, numbers and types are those of the protocol's
``open_inference_grpc.proto`` (with the ``double`` and ``uint64`` parameters that Triton's clients know); a test
compares them with what other vendors ship.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_SCALARS = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "string", "bytes", "int32", "int64", "uint32", "uint64", "float", "double")
}

#: Message → fields as "type name" in the order of their numbers. "*": repeated. "map": from strings. "|": in a oneof.
#: A dotted name is a nested message.
MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready",),
    "ModelReadyRequest": ("string name", "string version"),
    "ModelReadyResponse": ("bool ready",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name", "string version", "*string extensions"),
    "ModelMetadataRequest": ("string name", "string version"),
    "ModelMetadataResponse": (
        "string name", "*string versions", "string platform",
        "*ModelMetadataResponse.TensorMetadata inputs", "*ModelMetadataResponse.TensorMetadata outputs",
        "map:string properties",
    ),
    "ModelMetadataResponse.TensorMetadata": ("string name", "string datatype", "*int64 shape"),
    "ModelInferRequest": (
        "string model_name", "string model_version", "string id", "map:InferParameter parameters",
        "*ModelInferRequest.InferInputTensor inputs", "*ModelInferRequest.InferRequestedOutputTensor outputs",
        "*bytes raw_input_contents",
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name", "string datatype", "*int64 shape", "map:InferParameter parameters",
        "InferTensorContents contents",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ("string name", "map:InferParameter parameters"),
    "ModelInferResponse": (
        "string model_name", "string model_version", "string id", "map:InferParameter parameters",
        "*ModelInferResponse.InferOutputTensor outputs", "*bytes raw_output_contents",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name", "string datatype", "*int64 shape", "map:InferParameter parameters",
        "InferTensorContents contents",
    ),
    "InferParameter": (
        "|bool bool_param", "|int64 int64_param", "|string string_param", "|double double_param",
        "|uint64 uint64_param",
    ),
    "InferTensorContents": (
        "*bool bool_contents", "*int32 int_contents", "*int64 int64_contents", "*uint32 uint_contents",
        "*uint64 uint64_contents", "*float fp32_contents", "*double fp64_contents", "*bytes bytes_contents",
    ),
}  # fmt: skip


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="lipdeploy/open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for path, fields in MESSAGES.items():
        parent, _, name = path.rpartition(".")
        message = (made[parent].nested_type if parent else file.message_type).add(name=name)
        made[path] = message
        for number, field in enumerate(fields, start=1):
            _add_field(message, path, number, field)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, path: str, number: int, text: str) -> None:
    kind, name = text.split(" ")
    field = message.field.add(name=name, number=number, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.startswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    elif kind.startswith("*"):
        field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    elif kind.startswith("map:"):
        field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, path, 1, "string key")
        _add_field(entry, path, 2, f"{kind.removeprefix('map:')} value")
        kind = f"{path}.{entry.name}"
    kind = kind.lstrip("|*")
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


#: A pool of our own: another library in the process may hold the same message names.
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def message_class(name: str) -> Any:
    """The class of a message of package ``inference``."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


#: The six calls: method → (request class, response class).
METHODS: dict[str, tuple[Any, Any]] = {
    method: (message_class(f"{method}Request"), message_class(f"{method}Response"))
    for method in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
}
