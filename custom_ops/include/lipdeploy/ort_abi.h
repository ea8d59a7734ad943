// The small part of ONNX Runtime's C ABI that this library uses, declared here because no wheel carries the headers.
//
// The ABI is frozen and append-only: OrtApi is a table of function pointers and a slot never moves. Checked against the
// official header by custom_ops/tests/abi_check.cc wherever that header can be had. API version 20: ONNX Runtime 1.20
// and everything later loads the library.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace lipdeploy::ort {

constexpr uint32_t kApiVersion = 20;

constexpr int kInvalidArgument = 2;  // OrtErrorCode
constexpr int kRuntimeFailure = 1;
constexpr int kFloat = 1, kFloat16 = 10, kDouble = 11, kBFloat16 = 16;  // ONNXTensorElementDataType
constexpr int kRequired = 0;                                             // OrtCustomOpInputOutputCharacteristic
constexpr int kDefaultMemory = 0;                                        // OrtMemType

struct Api {
  void* slots[278];
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// A function of the table: where it lies and how it is called.
template <size_t Slot, class Signature>
struct Function;

template <size_t Slot, class Result, class... Arguments>
struct Function<Slot, Result(Arguments...)> {
  static constexpr size_t kSlot = Slot;
  using Signature = Result(Arguments...);
  Result operator()(const Api* api, Arguments... arguments) const {
    return reinterpret_cast<Signature*>(api->slots[Slot])(arguments...);
  }
};

using ParallelTask = void (*)(void* user_data, size_t iteration);

inline constexpr Function<0, OrtStatus*(int code, const char* message)> CreateStatus;
inline constexpr Function<2, const char*(const OrtStatus*)> GetErrorMessage;
inline constexpr Function<26, OrtStatus*(const char* domain, OrtCustomOpDomain**)> CreateCustomOpDomain;
inline constexpr Function<27, OrtStatus*(OrtCustomOpDomain*, const struct CustomOp*)> CustomOpDomain_Add;
inline constexpr Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain;
inline constexpr Function<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData;
inline constexpr Function<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int* type)> GetTensorElementType;
inline constexpr Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)> GetDimensionsCount;
inline constexpr Function<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)> GetDimensions;
inline constexpr Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> GetTensorTypeAndShape;
inline constexpr Function<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)> KernelInfoGetAttribute_float;
inline constexpr Function<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64;
inline constexpr Function<88, OrtStatus*(const OrtKernelContext*, size_t*)> KernelContext_GetInputCount;
inline constexpr Function<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> KernelContext_GetInput;
inline constexpr Function<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>
    KernelContext_GetOutput;
inline constexpr Function<93, void(OrtStatus*)> ReleaseStatus;
inline constexpr Function<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo;
inline constexpr Function<101, void(OrtCustomOpDomain*)> ReleaseCustomOpDomain;
inline constexpr Function<163, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*, size_t* size)>
    KernelInfoGetAttributeArray_int64;
inline constexpr Function<193, OrtStatus*(const OrtKernelContext*, void**)> KernelContext_GetGPUComputeStream;
inline constexpr Function<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>
    ShapeInferContext_GetInputTypeShape;
inline constexpr Function<270, OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>
    ShapeInferContext_SetOutputTypeShape;
inline constexpr Function<274, OrtStatus*(const OrtKernelContext*, ParallelTask, size_t total, size_t batches, void*)>
    KernelContext_ParallelFor;

// OrtCustomOp: the callbacks that describe one operator for one provider. Null where not used.
struct CustomOp {
  uint32_t version = kApiVersion;
  void* (*CreateKernel)(const CustomOp*, const Api*, const OrtKernelInfo*) = nullptr;
  const char* (*GetName)(const CustomOp*) = nullptr;
  const char* (*GetExecutionProviderType)(const CustomOp*) = nullptr;
  int (*GetInputType)(const CustomOp*, size_t) = nullptr;
  size_t (*GetInputTypeCount)(const CustomOp*) = nullptr;
  int (*GetOutputType)(const CustomOp*, size_t) = nullptr;
  size_t (*GetOutputTypeCount)(const CustomOp*) = nullptr;
  void (*KernelCompute)(void*, OrtKernelContext*) = nullptr;
  void (*KernelDestroy)(void*) = nullptr;
  int (*GetInputCharacteristic)(const CustomOp*, size_t) = nullptr;
  int (*GetOutputCharacteristic)(const CustomOp*, size_t) = nullptr;
  int (*GetInputMemoryType)(const CustomOp*, size_t) = nullptr;
  int (*GetVariadicInputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicInputHomogeneity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputHomogeneity)(const CustomOp*) = nullptr;
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const Api*, const OrtKernelInfo*, void**) = nullptr;
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*) = nullptr;
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*) = nullptr;
  int (*GetStartVersion)(const CustomOp*) = nullptr;
  int (*GetEndVersion)(const CustomOp*) = nullptr;
  size_t (*GetMayInplace)(int**, int**) = nullptr;
  void (*ReleaseMayInplace)(int*, int*) = nullptr;
  size_t (*GetAliasMap)(int**, int**) = nullptr;
  void (*ReleaseAliasMap)(int*, int*) = nullptr;
};
static_assert(sizeof(void*) != 8 || sizeof(CustomOp) == 208, "OrtCustomOp of API version 20");

}  // namespace lipdeploy::ort
