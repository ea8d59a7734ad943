// Householder on CUDA: one thread for a few pairs, each 16 bytes of a's and of b's at once where they lie side by side.
#include "lipdeploy/householder.h"

#include "launch.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

template <class Element>
__global__ void reflect_pairs(const typename Element::Bits* __restrict__ x,
                              const typename Element::Bits* __restrict__ sine,
                              const typename Element::Bits* __restrict__ cosine,
                              typename Element::Bits* __restrict__ y, HouseholderShape shape) {
  using Bits = typename Element::Bits;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t q = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; q < shape.count(); q += stride) {
    const int64_t first = shape.first(q), second = first + shape.gap(), pair = shape.pair(q);
    Bits a = x[first], b = x[second];
    reflect<Element>(a, b, sine[pair], cosine[pair]);
    y[first] = a;
    y[second] = b;
  }
}

// Index is 32 bits wide where the tensor allows: 64-bit divisions cost more than the memory takes.
template <class Element, class Index>
__global__ void reflect_packs(const typename Element::Bits* __restrict__ x,
                              const typename Element::Bits* __restrict__ sine,
                              const typename Element::Bits* __restrict__ cosine,
                              typename Element::Bits* __restrict__ y, Index packs, Index gap, Index inner, Index pairs) {
  using P = Pack<typename Element::Bits>;
  constexpr Index kCount = P::kCount;
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const Index q = i * kCount, block = q / gap, first = q + block * gap;
    P a = P::load(x + first), b = P::load(x + first + gap);
#pragma unroll
    for (int k = 0; k < P::kCount; ++k) {
      const Index pair = (q + k) / inner % pairs;
      reflect<Element>(a.at[k], b.at[k], sine[pair], cosine[pair]);
    }
    a.store(y + first);
    b.store(y + first + gap);
  }
}

// a and b in turns.
template <class Element, class Index>
__global__ void reflect_neighbours(const typename Element::Bits* __restrict__ x,
                                   const typename Element::Bits* __restrict__ sine,
                                   const typename Element::Bits* __restrict__ cosine,
                                   typename Element::Bits* __restrict__ y, Index packs, Index pairs) {
  using P = Pack<typename Element::Bits>;
  constexpr Index kCount = P::kCount;
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += stride) {
    P p = P::load(x + i * kCount);
#pragma unroll
    for (int k = 0; k < P::kCount; k += 2) {
      const Index pair = (i * kCount + k) / 2 % pairs;
      reflect<Element>(p.at[k], p.at[k + 1], sine[pair], cosine[pair]);
    }
    p.store(y + i * kCount);
  }
}

template <class Element, class Index>
bool in_packs(const typename Element::Bits* x, const typename Element::Bits* sine, const typename Element::Bits* cosine,
              typename Element::Bits* y, const HouseholderShape& shape, cudaStream_t stream) {
  constexpr int64_t kCount = Pack<typename Element::Bits>::kCount;
  const Index pairs = static_cast<Index>(shape.pairs), inner = static_cast<Index>(shape.inner);
  if (shape.gap() % kCount == 0) {
    const int64_t packs = shape.count() / kCount;
    LIPDEPLOY_LAUNCH(blocks_for(packs, kThreads), kThreads, stream, (reflect_packs<Element, Index>), x, sine, cosine, y,
                     static_cast<Index>(packs), static_cast<Index>(shape.gap()), inner, pairs);
    return true;
  }
  if (shape.gap() == 1 && 2 * shape.count() % kCount == 0) {
    const int64_t packs = 2 * shape.count() / kCount;
    LIPDEPLOY_LAUNCH(blocks_for(packs, kThreads), kThreads, stream, (reflect_neighbours<Element, Index>), x, sine,
                     cosine, y, static_cast<Index>(packs), pairs);
    return true;
  }
  return false;
}

template <class Element>
int32_t householder_cuda(const void* input, const void* sines, const void* cosines, void* output,
                         const HouseholderShape& shape, cudaStream_t stream) {
  using Bits = typename Element::Bits;
  if (shape.count() == 0) return 0;
  const Bits *x = static_cast<const Bits*>(input), *sine = static_cast<const Bits*>(sines);
  const Bits* cosine = static_cast<const Bits*>(cosines);
  Bits* y = static_cast<Bits*>(output);
  bool done = false;
  if (aligned_for_packs(x, y))
    done = fits_32_bits(2 * shape.count()) ? in_packs<Element, uint32_t>(x, sine, cosine, y, shape, stream)
                                           : in_packs<Element, uint64_t>(x, sine, cosine, y, shape, stream);
  if (!done)
    LIPDEPLOY_LAUNCH(blocks_for(shape.count(), kThreads), kThreads, stream, (reflect_pairs<Element>), x, sine, cosine, y,
                     shape);
  return static_cast<int32_t>(cudaGetLastError());
}

}  // namespace
}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                                  \
  LIPDEPLOY_EXPORT int32_t LIPDEPLOY_CUDA_NAME(lipdeploy_householder_##T)(LIPDEPLOY_HOUSEHOLDER_ARGUMENTS, void* stream) { \
    lipdeploy::HouseholderShape shape;                                                                                \
    if (!lipdeploy::householder_shape(outer, channels, inner, layout, &shape)) return LIPDEPLOY_BAD_ARGUMENT;         \
    return lipdeploy::householder_cuda<lipdeploy::Element>(x, sine, cosine, y, shape,                                 \
                                                           static_cast<cudaStream_t>(stream));                        \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
