// Registers every operator of the domain `lipdeploy` with ONNX Runtime: four element types each, for the CPU and, where
// the library was built with CUDA, for the CUDA provider; and the domain `lipdeploy.f64` beside it.
#include <string>
#include <type_traits>

#include "cpu/kernels.h"
#include "lipdeploy/entry_points.h"
#include "lipdeploy/group_sort.h"
#include "lipdeploy/householder.h"
#include "lipdeploy/linear_spline.h"
#include "registration.h"

namespace lipdeploy {
namespace {

using namespace ort;

constexpr int kOperatorSet = 1;

template <class Element>
constexpr int kElementType = std::is_same_v<Element, Float16>    ? kFloat16
                             : std::is_same_v<Element, BFloat16> ? kBFloat16
                             : std::is_same_v<Element, Float32>  ? kFloat
                                                                 : kDouble;

struct OnCpu {
  static constexpr const char* kProvider = nullptr;
};
#if defined(LIPDEPLOY_HAS_CUDA)
struct OnCuda {
  static constexpr const char* kProvider = "CUDAExecutionProvider";
};
#endif

// (outer, channels, inner) around the channel axis.
struct AroundAxis {
  int64_t outer = 1, channels = 1, inner = 1;
};

AroundAxis around_axis(const char* op, const std::vector<int64_t>& shape, int64_t axis) {
  const int64_t rank = static_cast<int64_t>(shape.size());
  if (axis < -rank || axis >= rank)
    throw std::invalid_argument(std::string(op) + ": axis " + std::to_string(axis) + " does not exist in shape " + text(shape));
  if (axis < 0) axis += rank;
  AroundAxis result;
  for (int64_t i = 0; i < rank; ++i) {
    int64_t& part = i < axis ? result.outer : i == axis ? result.channels : result.inner;
    part = i == axis ? shape[i] : part * shape[i];
  }
  return result;
}

#if defined(LIPDEPLOY_HAS_CUDA)
void check_launch(const char* op, int32_t error) {
  if (error != 0) throw std::runtime_error(std::string(op) + ": CUDA error " + std::to_string(error));
}

void* stream_of(const Api* api, const OrtKernelContext* context) {
  void* stream = nullptr;
  check(KernelContext_GetGPUComputeStream(api, context, &stream));
  return stream;
}

// The entry points of src/cuda, chosen by type.
template <class Element>
struct Cuda;
#define LIPDEPLOY_CHOOSE(T, Element)                                             \
  template <>                                                                    \
  struct Cuda<Element> {                                                         \
    static constexpr auto group_sort = &lipdeploy_group_sort_##T##_cuda;          \
    static constexpr auto linear_spline = &lipdeploy_linear_spline_##T##_cuda;    \
    static constexpr auto householder = &lipdeploy_householder_##T##_cuda;        \
  };
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_CHOOSE)
#undef LIPDEPLOY_CHOOSE
#endif

struct GroupSortKernel {
  static constexpr const char* kName = "GroupSort";
  static constexpr size_t kInputs = 1;
  const Api* api;
  int64_t group_size, axis, layout, descending;

  GroupSortKernel(const Api* a, const OrtKernelInfo* info)
      : api(a),
        group_size(int_attribute(a, info, "group_size", 2)),
        axis(int_attribute(a, info, "axis", 1)),
        layout(int_attribute(a, info, "layout", 0)),
        descending(int_attribute(a, info, "descending", 0)) {
    if (group_size < 0) throw std::invalid_argument("GroupSort: group_size must be an integer >= 1, or 0 for the whole axis");
    if (layout != 0 && layout != 1) throw std::invalid_argument("GroupSort: layout must be 0 (adjacent) or 1 (strided)");
    if (descending != 0 && descending != 1) throw std::invalid_argument("GroupSort: descending must be 0 or 1");
  }

  template <class Element, class Provider>
  void compute(OrtKernelContext* context) const {
    const Tensor x = input(api, context, 0);
    check_type(kName, x, kElementType<Element>);
    const AroundAxis a = around_axis(kName, x.shape, axis);
    GroupSortShape shape;
    if (!group_sort_shape(a.outer, a.channels, a.inner, group_size, layout, descending, &shape))
      throw std::invalid_argument("GroupSort: group_size " + std::to_string(group_size) + " does not divide the " +
                                  std::to_string(a.channels) + " channels of shape " + text(x.shape));
    void* y = output_like(api, context, x);
    if constexpr (std::is_same_v<Provider, OnCpu>) {
      group_sort_cpu<Element>(x.data, y, shape, parallel_for(api, context));
    } else {
#if defined(LIPDEPLOY_HAS_CUDA)
      check_launch(kName, Cuda<Element>::group_sort(x.data, y, a.outer, a.channels, a.inner, group_size, layout,
                                                    descending, stream_of(api, context)));
#endif
    }
  }
};

struct LinearSplineKernel {
  static constexpr const char* kName = "LinearSpline";
  static constexpr size_t kInputs = 2;
  const Api* api;
  float lower, knot_spacing;
  int64_t axis;

  LinearSplineKernel(const Api* a, const OrtKernelInfo* info)
      : api(a),
        lower(float_attribute(a, info, "lower")),
        knot_spacing(float_attribute(a, info, "knot_spacing")),
        axis(int_attribute(a, info, "axis", 1)) {
    if (!linear_spline_shape_is_valid({0, 0, 0, 1, 2, lower, knot_spacing}))
      throw std::invalid_argument("LinearSpline: lower must be finite and knot_spacing finite and > 0");
  }

  template <class Element, class Provider>
  void compute(OrtKernelContext* context) const {
    const Tensor x = input(api, context, 0), coefficients = input(api, context, 1);
    check_type(kName, x, kElementType<Element>);
    check_type(kName, coefficients, kElementType<Element>);
    const AroundAxis a = around_axis(kName, x.shape, axis);
    const bool matrix = coefficients.shape.size() == 2;
    const LinearSplineShape shape{a.outer, a.channels, a.inner, matrix ? coefficients.shape[0] : 0,
                                  matrix ? coefficients.shape[1] : 0, lower, knot_spacing};
    if (!linear_spline_shape_is_valid(shape))
      throw std::invalid_argument("LinearSpline: coefficients must have shape (" + std::to_string(a.channels) +
                                  ", K) or (1, K) with 2 to 2^24 knots K, found " + text(coefficients.shape));
    void* y = output_like(api, context, x);
    if constexpr (std::is_same_v<Provider, OnCpu>) {
      linear_spline_cpu<Element>(x.data, coefficients.data, y, shape, parallel_for(api, context));
    } else {
#if defined(LIPDEPLOY_HAS_CUDA)
      check_launch(kName, Cuda<Element>::linear_spline(x.data, coefficients.data, y, a.outer, a.channels, a.inner,
                                                       shape.rows, shape.knots, lower, knot_spacing,
                                                       stream_of(api, context)));
#endif
    }
  }
};

struct HouseholderKernel {
  static constexpr const char* kName = "Householder";
  static constexpr size_t kInputs = 3;
  const Api* api;
  int64_t axis, layout;

  HouseholderKernel(const Api* a, const OrtKernelInfo* info)
      : api(a), axis(int_attribute(a, info, "axis", 1)), layout(int_attribute(a, info, "layout", 1)) {
    if (layout != 0 && layout != 1) throw std::invalid_argument("Householder: layout must be 0 (adjacent) or 1 (strided)");
  }

  template <class Element, class Provider>
  void compute(OrtKernelContext* context) const {
    const Tensor x = input(api, context, 0), sine = input(api, context, 1), cosine = input(api, context, 2);
    for (const Tensor* tensor : {&x, &sine, &cosine}) check_type(kName, *tensor, kElementType<Element>);
    const AroundAxis a = around_axis(kName, x.shape, axis);
    HouseholderShape shape;
    if (!householder_shape(a.outer, a.channels, a.inner, layout, &shape))
      throw std::invalid_argument("Householder: the " + std::to_string(a.channels) + " channels of shape " +
                                  text(x.shape) + " do not form pairs");
    for (const Tensor* angle : {&sine, &cosine})
      if (angle->shape != std::vector<int64_t>{shape.pairs})
        throw std::invalid_argument("Householder: sine and cosine must have shape (" + std::to_string(shape.pairs) +
                                    "), found " + text(angle->shape));
    void* y = output_like(api, context, x);
    if constexpr (std::is_same_v<Provider, OnCpu>) {
      householder_cpu<Element>(x.data, sine.data, cosine.data, y, shape, parallel_for(api, context));
    } else {
#if defined(LIPDEPLOY_HAS_CUDA)
      check_launch(kName, Cuda<Element>::householder(x.data, sine.data, cosine.data, y, a.outer, a.channels, a.inner,
                                                     layout, stream_of(api, context)));
#endif
    }
  }
};

// One operator, one type, one provider.
template <class Kernel, class Element, class Provider>
struct Registration : Description<Kernel, kOperatorSet> {
  // Shape inference gets no table of functions, so the description keeps the one that it was registered with.
  const Api* api = nullptr;

  Registration() {
    this->GetExecutionProviderType = [](const CustomOp*) { return Provider::kProvider; };
    this->GetInputType = this->GetOutputType = [](const CustomOp*, size_t) { return kElementType<Element>; };
    this->KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const Kernel* self = static_cast<const Kernel*>(kernel);
      return guarded(self->api, [&] { self->template compute<Element, Provider>(context); });
    };
    this->InferOutputShapeFn = [](const CustomOp* self, OrtShapeInferContext* context) {
      const Api* api = static_cast<const Registration*>(self)->api;
      return guarded(api, [&] {
        OrtTensorTypeAndShapeInfo* shape = nullptr;  // stays the context's own
        check(ShapeInferContext_GetInputTypeShape(api, context, 0, &shape));
        check(ShapeInferContext_SetOutputTypeShape(api, context, 0, shape));
      });
    };
  }
};

template <class Kernel, class Element, class Provider>
void add(const Api* api, OrtCustomOpDomain* domain) {
  static Registration<Kernel, Element, Provider> registration;
  registration.api = api;
  check(CustomOpDomain_Add(api, domain, &registration));
}

template <class Kernel, class Provider>
void add_all_types(const Api* api, OrtCustomOpDomain* domain) {
  add<Kernel, Float32, Provider>(api, domain);
  add<Kernel, Float64, Provider>(api, domain);
  add<Kernel, Float16, Provider>(api, domain);
  add<Kernel, BFloat16, Provider>(api, domain);
}

template <class Provider>
void add_all_operators(const Api* api, OrtCustomOpDomain* domain) {
  add_all_types<GroupSortKernel, Provider>(api, domain);
  add_all_types<LinearSplineKernel, Provider>(api, domain);
  add_all_types<HouseholderKernel, Provider>(api, domain);
}

// ONNX Runtime keeps pointers to the domain without owning it, so it lives as long as the library does.
OrtCustomOpDomain* domain_of(const Api* api) {
  static OrtCustomOpDomain* const domain = [api] {
    OrtCustomOpDomain* created = nullptr;
    check(CreateCustomOpDomain(api, "lipdeploy", &created));
    add_all_operators<OnCpu>(api, created);
#if defined(LIPDEPLOY_HAS_CUDA)
    add_all_operators<OnCuda>(api, created);
#endif
    return created;
  }();
  return domain;
}

}  // namespace
}  // namespace lipdeploy

LIPDEPLOY_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const lipdeploy::ort::ApiBase* base) {
  const lipdeploy::ort::Api* api = base->GetApi(lipdeploy::ort::kApiVersion);
  // Without a table there is no way to make a status either; ONNX Runtime has printed which version it wanted.
  if (api == nullptr) return nullptr;
  return lipdeploy::ort::guarded(
      api, [&] {
        for (OrtCustomOpDomain* domain : {lipdeploy::domain_of(api), lipdeploy::ort::f64_domain(api)})
          lipdeploy::ort::check(lipdeploy::ort::AddCustomOpDomain(api, options, domain));
      });
}

int32_t lipdeploy_ops_version(void) { return lipdeploy::kOperatorSet; }

const char* lipdeploy_ops_release(void) { return LIPDEPLOY_RELEASE; }

int32_t lipdeploy_ops_has_cuda(void) {
#if defined(LIPDEPLOY_HAS_CUDA)
  return 1;
#else
  return 0;
#endif
}
