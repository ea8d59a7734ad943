// Compiles only where include/lipdeploy/ort_abi.h says what the official ONNX Runtime header says: every slot, every
// signature, the layout of OrtCustomOp, every constant. Nothing here runs.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "lipdeploy/ort_abi.h"

namespace ours = lipdeploy::ort;

// Two types are called alike when they are equal, or both are passed as a 32-bit integer (enumerations are), or both
// are pointers to such.
template <class T>
constexpr bool is_word() {
  if constexpr (std::is_enum_v<T> || std::is_integral_v<T>) return sizeof(T) == 4;
  return false;
}
template <class T>
constexpr bool word = is_word<T>();

template <class A, class B, class = void>
struct Same : std::bool_constant<std::is_same_v<A, B> || (word<A> && word<B>)> {};
template <>
struct Same<const OrtCustomOp*, const ours::CustomOp*> : std::true_type {};
template <class A, class B>
struct Same<A*, B*, std::enable_if_t<word<A> && word<B>>> : std::true_type {};
template <class R, class... A, class S, class... B>
struct Same<R (*)(A...), S (*)(B...), std::enable_if_t<sizeof...(A) == sizeof...(B)>>
    : std::bool_constant<(Same<R, S>::value && ... && Same<A, B>::value)> {};
template <class R, class... A, class S, class... B>
struct Same<R (*)(A...) noexcept, S (*)(B...)> : Same<R (*)(A...), S (*)(B...)> {};

#define SLOT(name)                                                                                        \
  static_assert(offsetof(OrtApi, name) == decltype(ours::name)::kSlot * sizeof(void*), "slot of " #name); \
  static_assert(Same<decltype(OrtApi::name), std::decay_t<decltype(ours::name)::Signature>>::value, "signature of " #name);

SLOT(CreateStatus)
SLOT(GetErrorMessage)
SLOT(CreateCustomOpDomain)
SLOT(CustomOpDomain_Add)
SLOT(AddCustomOpDomain)
SLOT(GetTensorMutableData)
SLOT(GetTensorElementType)
SLOT(GetDimensionsCount)
SLOT(GetDimensions)
SLOT(GetTensorTypeAndShape)
SLOT(KernelInfoGetAttribute_float)
SLOT(KernelInfoGetAttribute_int64)
SLOT(KernelContext_GetInputCount)
SLOT(KernelContext_GetInput)
SLOT(KernelContext_GetOutput)
SLOT(ReleaseStatus)
SLOT(ReleaseTensorTypeAndShapeInfo)
SLOT(ReleaseCustomOpDomain)
SLOT(KernelInfoGetAttributeArray_int64)
SLOT(KernelContext_GetGPUComputeStream)
SLOT(ShapeInferContext_GetInputTypeShape)
SLOT(ShapeInferContext_SetOutputTypeShape)
SLOT(KernelContext_ParallelFor)

static_assert(sizeof(ours::Api) <= sizeof(OrtApi), "the table ends before our last slot");
static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ours::ApiBase, GetApi), "OrtApiBase");
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ours::ApiBase, GetVersionString), "OrtApiBase");
static_assert(ORT_API_VERSION >= ours::kApiVersion, "the header is older than the version we ask for");

#define FIELD(name)                                                                       \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(ours::CustomOp, name), "OrtCustomOp::" #name); \
  static_assert(sizeof(OrtCustomOp::name) == sizeof(ours::CustomOp::name), "OrtCustomOp::" #name);

FIELD(version)
FIELD(CreateKernel)
FIELD(GetName)
FIELD(GetExecutionProviderType)
FIELD(GetInputType)
FIELD(GetInputTypeCount)
FIELD(GetOutputType)
FIELD(GetOutputTypeCount)
FIELD(KernelCompute)
FIELD(KernelDestroy)
FIELD(GetInputCharacteristic)
FIELD(GetOutputCharacteristic)
FIELD(GetInputMemoryType)
FIELD(GetVariadicInputMinArity)
FIELD(GetVariadicInputHomogeneity)
FIELD(GetVariadicOutputMinArity)
FIELD(GetVariadicOutputHomogeneity)
FIELD(CreateKernelV2)
FIELD(KernelComputeV2)
FIELD(InferOutputShapeFn)
FIELD(GetStartVersion)
FIELD(GetEndVersion)
FIELD(GetMayInplace)
FIELD(ReleaseMayInplace)
FIELD(GetAliasMap)
FIELD(ReleaseAliasMap)

static_assert(ours::kInvalidArgument == ORT_INVALID_ARGUMENT && ours::kRuntimeFailure == ORT_FAIL, "OrtErrorCode");
static_assert(ours::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32");
static_assert(ours::kFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16");
static_assert(ours::kDouble == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, "float64");
static_assert(ours::kBFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16");
static_assert(ours::kRequired == INPUT_OUTPUT_REQUIRED && ours::kDefaultMemory == OrtMemTypeDefault, "OrtCustomOp");
