// Registers the domain `lipdeploy.f64` for the CPU: each operator once with float and once with double weights.
#include <type_traits>

#include "cpu/f64_kernels.h"
#include "registration.h"

namespace lipdeploy::f64 {
namespace {

using namespace ort;

constexpr int kOperatorSet = 1;

template <class Weight>
constexpr int kWeightType = std::is_same_v<Weight, float> ? kFloat : kDouble;

void expect(bool holds, const char* op, const std::string& what, const Tensor& found) {
  if (!holds) throw std::invalid_argument(std::string(op) + ": " + what + ", found " + text(found.shape));
}

struct GemmKernel {
  static constexpr const char* kName = "Gemm";
  static constexpr size_t kInputs = 3;
  const Api* api;
  Tiles tiles = tiles_for(0);

  GemmKernel(const Api* a, const OrtKernelInfo*) : api(a) {}

  template <class Weight>
  void compute(OrtKernelContext* context) const {
    const Tensor x = input(api, context, 0), panels = input(api, context, 1), bias = input(api, context, 2);
    check_type(kName, x, kDouble);
    check_type(kName, panels, kWeightType<Weight>);
    check_type(kName, bias, kDouble);
    expect(!x.shape.empty(), kName, "X must have an axis", x);
    expect(bias.shape.size() == 1, kName, "the bias must have one axis", bias);
    GemmShape shape{1, x.shape.back(), bias.shape[0]};
    for (size_t axis = 0; axis + 1 < x.shape.size(); ++axis) shape.rows *= x.shape[axis];
    const std::vector<int64_t> expected{shape.panels(), shape.depth, shape.width()};
    expect(panels.shape == expected, kName, "the panels must have shape " + text(expected), panels);
    Tensor y = x;
    y.shape.back() = shape.columns;
    gemm_cpu(static_cast<const double*>(x.data), static_cast<const Weight*>(panels.data),
             static_cast<const double*>(bias.data), static_cast<double*>(output_like(api, context, y)), shape, tiles,
             parallel_for(api, context));
  }
};

struct ConvKernel {
  static constexpr const char* kName = "Conv";
  static constexpr size_t kInputs = 3;
  const Api* api;
  int64_t group;
  std::vector<int64_t> strides, dilations, pads;
  Tiles tiles = tiles_for(0);
  mutable Scratch scratch;

  ConvKernel(const Api* a, const OrtKernelInfo* info)
      : api(a),
        group(int_attribute(a, info, "group", 1)),
        strides(ints_attribute(a, info, "strides")),
        dilations(ints_attribute(a, info, "dilations")),
        pads(ints_attribute(a, info, "pads")) {
    const size_t rank = strides.size();
    if (rank < 1 || rank > kLargestRank || dilations.size() != rank || pads.size() != 2 * rank || group < 1)
      throw std::invalid_argument("Conv: strides, dilations and pads must be written, for 1 to 3 axes");
    for (const int64_t pad : pads)
      if (pad < 0) throw std::invalid_argument("Conv: a pad is negative");
  }

  ConvShape shape_of(const Tensor& x, const Tensor& weight, const Tensor& bias) const {
    const size_t rank = strides.size();
    expect(x.shape.size() == rank + 2, kName, "X must have " + std::to_string(rank + 2) + " axes", x);
    expect(weight.shape.size() == rank + 2 && weight.shape[0] % group == 0 && weight.shape[1] * group == x.shape[1],
           kName, "the weight does not fit X " + text(x.shape), weight);
    const std::vector<int64_t> outputs{weight.shape[0]};
    expect(bias.shape == outputs, kName, "the bias must have one number per output", bias);
    ConvShape shape{x.shape[0], group, weight.shape[1], weight.shape[0] / group, static_cast<int64_t>(rank),
                    {}, {}, {}, {}, {}, {}};
    for (size_t axis = 0; axis < rank; ++axis) {
      shape.input[axis] = x.shape[axis + 2];
      shape.kernel[axis] = weight.shape[axis + 2];
      shape.strides[axis] = strides[axis];
      shape.dilations[axis] = dilations[axis];
      shape.begin[axis] = pads[axis];
      const int64_t room = shape.input[axis] + pads[axis] + pads[rank + axis];
      const int64_t slack = room - (shape.kernel[axis] - 1) * dilations[axis] - 1;
      shape.output[axis] = slack < 0 || strides[axis] < 1 ? 0 : slack / strides[axis] + 1;
    }
    expect(conv_shape_is_valid(shape), kName, "a window does not fit", x);
    return shape;
  }

  template <class Weight>
  void compute(OrtKernelContext* context) const {
    const Tensor x = input(api, context, 0), weight = input(api, context, 1), bias = input(api, context, 2);
    check_type(kName, x, kDouble);
    check_type(kName, weight, kWeightType<Weight>);
    check_type(kName, bias, kDouble);
    const ConvShape shape = shape_of(x, weight, bias);
    Tensor y = x;
    y.shape[1] = weight.shape[0];
    for (int64_t axis = 0; axis < shape.rank; ++axis) y.shape[axis + 2] = shape.output[axis];
    conv_cpu(static_cast<const double*>(x.data), static_cast<const Weight*>(weight.data),
             static_cast<const double*>(bias.data), static_cast<double*>(output_like(api, context, y)), shape, tiles,
             scratch, parallel_for(api, context));
  }
};

template <class Kernel, class Weight>
struct Registration : Description<Kernel, kOperatorSet> {
  Registration() {
    this->GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
    this->GetInputType = [](const CustomOp*, size_t index) { return index == 1 ? kWeightType<Weight> : kDouble; };
    this->GetOutputType = [](const CustomOp*, size_t) { return kDouble; };
    this->KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const Kernel* self = static_cast<const Kernel*>(kernel);
      return guarded(self->api, [&] { self->template compute<Weight>(context); });
    };
  }
};

template <class Kernel, class Weight>
void add(const Api* api, OrtCustomOpDomain* domain) {
  static Registration<Kernel, Weight> registration;
  check(CustomOpDomain_Add(api, domain, &registration));
}

}  // namespace
}  // namespace lipdeploy::f64

OrtCustomOpDomain* lipdeploy::ort::f64_domain(const Api* api) {
  static OrtCustomOpDomain* const domain = [api] {
    OrtCustomOpDomain* created = nullptr;
    check(CreateCustomOpDomain(api, "lipdeploy.f64", &created));
    f64::add<f64::GemmKernel, float>(api, created);
    f64::add<f64::GemmKernel, double>(api, created);
    f64::add<f64::ConvKernel, float>(api, created);
    f64::add<f64::ConvKernel, double>(api, created);
    return created;
  }();
  return domain;
}

int32_t lipdeploy_f64_version(void) { return lipdeploy::f64::kOperatorSet; }
