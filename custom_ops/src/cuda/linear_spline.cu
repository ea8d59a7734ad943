// LinearSpline on CUDA: one thread per element, the coefficient table through the read-only cache.
#include "lipdeploy/linear_spline.h"

#include "launch.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

template <class Element>
__global__ void apply_spline(const typename Element::Bits* __restrict__ x,
                             const typename Element::Bits* __restrict__ coefficients,
                             typename Element::Bits* __restrict__ y, LinearSplineShape shape) {
  using Work = typename Element::Work;
  const Work lower = shape.lower, h = shape.knot_spacing;
  const int32_t last = static_cast<int32_t>(shape.knots - 2);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < shape.elements(); i += stride) {
    const int64_t row = shape.rows == 1 ? 0 : i / shape.inner % shape.channels;
    y[i] = linear_spline<Element>(x[i], coefficients + row * shape.knots, last, lower, h);
  }
}

template <class Element>
int32_t linear_spline_cuda(const void* x, const void* coefficients, void* y, const LinearSplineShape& shape,
                           cudaStream_t stream) {
  using Bits = typename Element::Bits;
  if (shape.elements() == 0) return 0;
  LIPDEPLOY_LAUNCH(blocks_for(shape.elements(), kThreads), kThreads, stream, (apply_spline<Element>),
                   static_cast<const Bits*>(x), static_cast<const Bits*>(coefficients), static_cast<Bits*>(y), shape);
  return static_cast<int32_t>(cudaGetLastError());
}

}  // namespace
}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                             \
  LIPDEPLOY_EXPORT int32_t LIPDEPLOY_CUDA_NAME(lipdeploy_linear_spline_##T)(LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS,     \
                                                                            void* stream) {                      \
    const lipdeploy::LinearSplineShape shape{outer, channels, inner, rows, knots, lower, knot_spacing};          \
    if (!lipdeploy::linear_spline_shape_is_valid(shape)) return LIPDEPLOY_BAD_ARGUMENT;                          \
    return lipdeploy::linear_spline_cuda<lipdeploy::Element>(x, coefficients, y, shape,                          \
                                                             static_cast<cudaStream_t>(stream));                 \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
