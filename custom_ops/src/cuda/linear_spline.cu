// LinearSpline on CUDA: 16 bytes of elements for a thread at once; the coefficients in shared memory where the table
// fits, else through the read-only cache.
#include "lipdeploy/linear_spline.h"

#include "launch.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

// Three blocks of 256 threads with this much each still fit on one multiprocessor of sm_80.
constexpr int kTableBytes = 32768;

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

// Index is 32 bits wide where the tensor allows. `inner` and `channels` are 1 where one row serves all.
template <class Element, class Index, bool Shared>
__global__ void apply_to_packs(const typename Element::Bits* __restrict__ x,
                               const typename Element::Bits* __restrict__ coefficients,
                               typename Element::Bits* __restrict__ y, Index packs, Index inner, Index channels,
                               int32_t knots, float lower, float knot_spacing) {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;
  using P = Pack<Bits>;
  __shared__ Bits table[Shared ? kTableBytes / sizeof(Bits) : 1];
  if constexpr (Shared) {
    const int32_t entries = static_cast<int32_t>(channels) * knots;
    for (int32_t i = threadIdx.x; i < entries; i += blockDim.x) table[i] = coefficients[i];
    __syncthreads();
  }
  const Bits* rows = Shared ? table : coefficients;
  const Work wide_lower = lower, h = knot_spacing;
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const Index first = i * P::kCount;
    P p = P::load(x + first);
    Index group = first / inner, place = first - group * inner, channel = group % channels;
#pragma unroll
    for (int k = 0; k < P::kCount; ++k) {
      p.at[k] = linear_spline<Element>(p.at[k], rows + static_cast<int64_t>(channel) * knots, knots - 2, wide_lower, h);
      if (++place == inner) {
        place = 0;
        channel = channel + 1 == channels ? 0 : channel + 1;
      }
    }
    p.store(y + first);
  }
}

template <class Element, class Index, bool Shared>
void launch_packs(const typename Element::Bits* x, const typename Element::Bits* coefficients,
                  typename Element::Bits* y, const LinearSplineShape& shape, cudaStream_t stream) {
  const int64_t packs = shape.elements() / Pack<typename Element::Bits>::kCount;
  const bool one_row = shape.rows == 1;
  // With a table to fill first, blocks that stay for many packs.
  const int64_t blocks = Shared ? std::min<int64_t>(blocks_for(packs, kThreads), 2048) : blocks_for(packs, kThreads);
  LIPDEPLOY_LAUNCH(blocks, kThreads, stream, (apply_to_packs<Element, Index, Shared>), x, coefficients, y,
                   static_cast<Index>(packs), static_cast<Index>(one_row ? 1 : shape.inner),
                   static_cast<Index>(one_row ? 1 : shape.channels), static_cast<int32_t>(shape.knots), shape.lower,
                   shape.knot_spacing);
}

template <class Element, class Index>
void launch_either(const typename Element::Bits* x, const typename Element::Bits* coefficients,
                   typename Element::Bits* y, const LinearSplineShape& shape, cudaStream_t stream) {
  const int64_t bytes = shape.rows * shape.knots * static_cast<int64_t>(sizeof(typename Element::Bits));
  // Each block copies the table once: that must not be more than the tensor itself.
  if (bytes <= kTableBytes && shape.rows * shape.knots <= shape.elements() / 64) {
    launch_packs<Element, Index, true>(x, coefficients, y, shape, stream);
  } else {
    launch_packs<Element, Index, false>(x, coefficients, y, shape, stream);
  }
}

template <class Element>
int32_t linear_spline_cuda(const void* input, const void* table, void* output, const LinearSplineShape& shape,
                           cudaStream_t stream) {
  using Bits = typename Element::Bits;
  if (shape.elements() == 0) return 0;
  const Bits *x = static_cast<const Bits*>(input), *coefficients = static_cast<const Bits*>(table);
  Bits* y = static_cast<Bits*>(output);
  if (!aligned_for_packs(x, y) || shape.elements() % Pack<Bits>::kCount != 0) {
    LIPDEPLOY_LAUNCH(blocks_for(shape.elements(), kThreads), kThreads, stream, (apply_spline<Element>), x, coefficients,
                     y, shape);
  } else if (fits_32_bits(shape.elements())) {
    launch_either<Element, uint32_t>(x, coefficients, y, shape, stream);
  } else {
    launch_either<Element, uint64_t>(x, coefficients, y, shape, stream);
  }
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
