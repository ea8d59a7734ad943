// ONNX Runtime's calls with errors as exceptions: inside a callback code throws, at its edge `guarded` turns that into
// an OrtStatus, so that nothing ever unwinds through ONNX Runtime.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "lipdeploy/ort_abi.h"

namespace lipdeploy::ort {

struct StatusError {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status != nullptr) throw StatusError{status};
}

template <class Body>
OrtStatus* guarded(const Api* api, Body body) {
  try {
    body();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const std::invalid_argument& error) {
    return CreateStatus(api, kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return CreateStatus(api, kRuntimeFailure, error.what());
  } catch (...) {
    return CreateStatus(api, kRuntimeFailure, "lipdeploy: unknown failure");
  }
}

struct Tensor {
  void* data = nullptr;
  int type = 0;
  std::vector<int64_t> shape;
};

inline Tensor input(const Api* api, OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  check(KernelContext_GetInput(api, context, index, &value));
  if (value == nullptr) throw std::invalid_argument("lipdeploy: input " + std::to_string(index) + " is missing");
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(GetTensorTypeAndShape(api, value, &info));
  Tensor tensor;
  OrtStatus* status = GetTensorElementType(api, info, &tensor.type);
  size_t rank = 0;
  if (status == nullptr) status = GetDimensionsCount(api, info, &rank);
  if (status == nullptr) {
    tensor.shape.resize(rank);
    status = GetDimensions(api, info, tensor.shape.data(), rank);
  }
  ReleaseTensorTypeAndShapeInfo(api, info);
  check(status);
  check(GetTensorMutableData(api, const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

inline void* output_like(const Api* api, OrtKernelContext* context, const Tensor& x) {
  OrtValue* value = nullptr;
  check(KernelContext_GetOutput(api, context, 0, x.shape.data(), x.shape.size(), &value));
  void* data = nullptr;
  check(GetTensorMutableData(api, value, &data));
  return data;
}

// An attribute that may be omitted. ONNX Runtime reports a missing one and one of another type alike but in words.
template <class Value, class Get>
Value attribute(const Api* api, const OrtKernelInfo* info, const char* name, const Value* otherwise, const Get& get) {
  Value value{};
  OrtStatus* status = get(api, info, name, &value);
  if (status == nullptr) return value;
  const std::string message = GetErrorMessage(api, status);
  ReleaseStatus(api, status);
  const bool missing = message.find("No attribute with") != std::string::npos;
  if (missing && otherwise != nullptr) return *otherwise;
  throw std::invalid_argument(std::string("lipdeploy: attribute '") + name + "': " + message);
}

inline int64_t int_attribute(const Api* api, const OrtKernelInfo* info, const char* name, int64_t otherwise) {
  return attribute<int64_t>(api, info, name, &otherwise, KernelInfoGetAttribute_int64);
}

inline float float_attribute(const Api* api, const OrtKernelInfo* info, const char* name) {
  return attribute<float>(api, info, name, nullptr, KernelInfoGetAttribute_float);
}

inline std::vector<int64_t> ints_attribute(const Api* api, const OrtKernelInfo* info, const char* name) {
  size_t size = 0;
  check(KernelInfoGetAttributeArray_int64(api, info, name, nullptr, &size));
  std::vector<int64_t> values(size);
  check(KernelInfoGetAttributeArray_int64(api, info, name, values.data(), &size));
  return values;
}

inline std::string text(const std::vector<int64_t>& shape) {
  std::string result = "(";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + ")";
}

}  // namespace lipdeploy::ort
