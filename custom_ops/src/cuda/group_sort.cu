// GroupSort on CUDA. Groups of up to 32 are sorted by one thread each, in registers; larger ones by one thread block
// each, in shared memory where they fit and in place in the output where they do not.
#include "lipdeploy/group_sort.h"

#include "launch.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

constexpr int kLargestInRegisters = 32;
constexpr int kSharedBytes = 32768;

// Bitonic sort of a power of two, every index known at compile time, so that the keys stay in registers.
template <int Size, class Bits>
__device__ __forceinline__ void sort_registers(Bits (&key)[Size]) {
#pragma unroll
  for (int width = 2; width <= Size; width *= 2) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int i = 0; i < Size; ++i) {
        const int j = i ^ distance;
        if (j > i) {
          if ((i & width) == 0) {
            compare_exchange(key[i], key[j]);
          } else {
            compare_exchange(key[j], key[i]);
          }
        }
      }
    }
  }
}

// One thread, one group. Neighbouring threads have neighbouring lanes, so accesses coalesce where lanes are contiguous.
template <class Element, int Size>
__global__ void sort_small(const typename Element::Bits* __restrict__ x, typename Element::Bits* __restrict__ y,
                           GroupSortShape shape) {
  using Bits = typename Element::Bits;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; column < shape.columns();
       column += stride) {
    const int64_t base = shape.base(column);
    Bits key[Size];
    bool nan = false;
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      // What fills the array up to a power of two sorts behind every number.
      key[i] = kLargest<Bits>;
      if (i < shape.size) {
        key[i] = ordered(x[base + i * shape.lanes]);
        nan |= is_nan_key<Element>(key[i]);
      }
    }
    sort_registers(key);
#pragma unroll
    for (int i = 0; i < Size; ++i)
      if (i < shape.size) y[base + shape.row(i) * shape.lanes] = nan ? Element::kQuietNaN : ordered(key[i]);
  }
}

// Sorts key[0], key[stride], ... with the whole block, any count. Every comparator points the same way, so that what
// lies beyond the end may be imagined larger than everything and is never touched.
template <class Bits>
__device__ void sort_with_block(Bits* key, int64_t count, int64_t stride) {
  for (int64_t width = 2; width < 2 * count; width *= 2) {
    for (int64_t distance = width / 2; distance > 0; distance /= 2) {
      const int64_t flip = distance == width / 2 ? width - 1 : distance;
      for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        const int64_t j = i ^ flip;
        if (j > i && j < count) compare_exchange(key[i * stride], key[j * stride]);
      }
      __syncthreads();
    }
  }
}

// One block, one group.
template <class Element>
__global__ void sort_large(const typename Element::Bits* __restrict__ x, typename Element::Bits* y,
                           GroupSortShape shape) {
  using Bits = typename Element::Bits;
  constexpr int kShared = kSharedBytes / sizeof(Bits);
  __shared__ Bits tile[kShared];
  __shared__ int nan;
  for (int64_t column = blockIdx.x; column < shape.columns(); column += gridDim.x) {
    const int64_t base = shape.base(column);
    const bool fits = shape.size <= kShared;
    Bits* key = fits ? tile : y + base;
    const int64_t stride = fits ? 1 : shape.lanes;
    if (threadIdx.x == 0) nan = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < shape.size; i += blockDim.x) {
      const Bits value = ordered(x[base + i * shape.lanes]);
      if (is_nan_key<Element>(value)) nan = 1;
      key[i * stride] = value;
    }
    __syncthreads();
    sort_with_block(key, shape.size, stride);
    // Both ends at once, because the keys may lie where the results go.
    for (int64_t i = threadIdx.x; 2 * i < shape.size; i += blockDim.x) {
      const int64_t mirror = shape.size - 1 - i;
      const Bits low = key[i * stride], high = key[mirror * stride];
      y[base + shape.row(i) * shape.lanes] = nan ? Element::kQuietNaN : ordered(low);
      y[base + shape.row(mirror) * shape.lanes] = nan ? Element::kQuietNaN : ordered(high);
    }
    __syncthreads();
  }
}

template <class Element, int Size>
void launch_small(const typename Element::Bits* x, typename Element::Bits* y, const GroupSortShape& shape,
                  cudaStream_t stream) {
  const int64_t blocks = blocks_for(shape.columns(), kThreads);
  LIPDEPLOY_LAUNCH(blocks, kThreads, stream, (sort_small<Element, Size>), x, y, shape);
}

template <class Element>
int32_t group_sort_cuda(const void* input, void* output, const GroupSortShape& shape, cudaStream_t stream) {
  using Bits = typename Element::Bits;
  if (shape.columns() == 0 || shape.size == 0) return 0;
  const Bits* x = static_cast<const Bits*>(input);
  Bits* y = static_cast<Bits*>(output);
  if (shape.size <= 2) {
    launch_small<Element, 2>(x, y, shape, stream);
  } else if (shape.size <= 4) {
    launch_small<Element, 4>(x, y, shape, stream);
  } else if (shape.size <= 8) {
    launch_small<Element, 8>(x, y, shape, stream);
  } else if (shape.size <= 16) {
    launch_small<Element, 16>(x, y, shape, stream);
  } else if (shape.size <= kLargestInRegisters) {
    launch_small<Element, kLargestInRegisters>(x, y, shape, stream);
  } else {
    LIPDEPLOY_LAUNCH(blocks_for(shape.columns(), 1), kThreads, stream, (sort_large<Element>), x, y, shape);
  }
  return static_cast<int32_t>(cudaGetLastError());
}

}  // namespace
}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                                  \
  LIPDEPLOY_EXPORT int32_t LIPDEPLOY_CUDA_NAME(lipdeploy_group_sort_##T)(LIPDEPLOY_GROUP_SORT_ARGUMENTS, void* stream) { \
    lipdeploy::GroupSortShape shape;                                                                                  \
    if (!lipdeploy::group_sort_shape(outer, channels, inner, group_size, layout, descending, &shape))                 \
      return LIPDEPLOY_BAD_ARGUMENT;                                                                                  \
    return lipdeploy::group_sort_cuda<lipdeploy::Element>(x, y, shape, static_cast<cudaStream_t>(stream));            \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
