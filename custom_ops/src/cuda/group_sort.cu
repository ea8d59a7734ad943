// GroupSort on CUDA. Groups of up to 32 are sorted by one thread each, in registers; larger ones by one thread block
// each, in shared memory where they fit and in place in the output where they do not.
//
// Small groups reach memory in one of three ways. Lanes side by side (images, strided layouts): a thread sorts as many
// neighbouring columns as fill 16 bytes, or fewer where their keys would not fit the registers. Groups one after the
// other, of a size that divides 16 bytes: a thread sorts the groups of 16 bytes. Other groups one after the other: a
// block copies a contiguous piece to shared memory and back, so that every access to memory is coalesced.
//
// The kernels know types by their bits only: the two 16-bit types share code, and differ in what a NaN is. Positions are
// 32 bits wide, because 64-bit divisions cost more than the memory takes; larger tensors are sorted piece by piece.
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

template <class Bits>
struct Limits {
  Bits infinity, quiet_nan;

  __device__ __forceinline__ bool is_nan(Bits key) const {
    return (key > infinity) | (key < static_cast<Bits>(~infinity));
  }
};

// One group: numbers in, sorted numbers out, ascending. What fills the array up to a power of two lies behind `count`.
template <int Size, class Bits>
__device__ __forceinline__ void sort_group(Bits (&value)[Size], int count, Limits<Bits> limits) {
  bool nan = false;
#pragma unroll
  for (int i = 0; i < Size; ++i) {
    value[i] = i < count ? ordered(value[i]) : kLargest<Bits>;
    if (i < count) nan |= limits.is_nan(value[i]);
  }
  sort_registers(value);
#pragma unroll
  for (int i = 0; i < Size; ++i) value[i] = nan ? limits.quiet_nan : ordered(value[i]);
}

// As many neighbouring columns for one thread: 16 bytes of them, but at most 32 keys, 64 of two bytes.
template <class Bits, int Size>
constexpr int kPackBytes = [] {
  const int keys = sizeof(Bits) == 2 ? 64 : 32, columns = keys / Size < 1 ? 1 : keys / Size;
  const int bytes = columns * static_cast<int>(sizeof(Bits));
  return bytes < 16 ? bytes : 16;
}();

// ---- lanes side by side

template <class Bits, int Size>
__global__ void sort_packs(const Bits* __restrict__ x, Bits* __restrict__ y,
                           uint32_t packs, uint32_t lanes, int size, bool descending, Limits<Bits> limits) {
  using P = Pack<Bits, kPackBytes<Bits, Size>>;
  constexpr uint32_t kCount = P::kCount;
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const uint32_t column = i * kCount, block = column / lanes;
    const uint32_t base = block * lanes * size + (column - block * lanes);
    P rows[Size];
#pragma unroll
    for (int r = 0; r < Size; ++r)
      if (r < size) rows[r] = P::load(x + base + r * lanes);
#pragma unroll
    for (int k = 0; k < P::kCount; ++k) {
      Bits value[Size];
#pragma unroll
      for (int r = 0; r < Size; ++r) value[r] = rows[r].at[k];
      sort_group(value, size, limits);
#pragma unroll
      for (int r = 0; r < Size; ++r) rows[r].at[k] = value[r];
    }
#pragma unroll
    for (int r = 0; r < Size; ++r)
      if (r < size) rows[r].store(y + base + (descending ? size - 1 - r : r) * lanes);
  }
}

// ---- groups one after the other, whole groups in 16 bytes

template <class Bits, int Size>
__global__ void sort_within_packs(const Bits* __restrict__ x, Bits* __restrict__ y,
                                  uint32_t packs, bool descending, Limits<Bits> limits) {
  using P = Pack<Bits>;
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    P p = P::load(x + i * P::kCount);
#pragma unroll
    for (int first = 0; first + Size <= P::kCount; first += Size) {
      Bits value[Size];
#pragma unroll
      for (int r = 0; r < Size; ++r) value[r] = p.at[first + r];
      sort_group(value, Size, limits);
#pragma unroll
      for (int r = 0; r < Size; ++r) p.at[first + r] = descending ? value[Size - 1 - r] : value[r];
    }
    p.store(y + i * P::kCount);
  }
}

// ---- groups one after the other, through shared memory

constexpr int kStagedThreads = 128;

template <class Bits, int Size>
__global__ void sort_staged(const Bits* __restrict__ x, Bits* __restrict__ y,
                            uint32_t groups, int size, bool descending, Limits<Bits> limits) {
  // One element of padding, so that the threads of a warp meet different banks.
  constexpr int kRoom = kStagedThreads * (Size + 1);
  __shared__ Bits tile[kRoom];
  const int pitch = size | 1;
  for (uint32_t first = blockIdx.x * kStagedThreads; first < groups; first += gridDim.x * kStagedThreads) {
    const int here = groups - first < kStagedThreads ? static_cast<int>(groups - first) : kStagedThreads;
    const int elements = here * size;
    const uint32_t base = first * static_cast<uint32_t>(size);
    for (int i = threadIdx.x; i < elements; i += kStagedThreads) tile[i / size * pitch + i % size] = x[base + i];
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < here) {
      Bits* own = tile + threadIdx.x * pitch;
      Bits value[Size];
#pragma unroll
      for (int r = 0; r < Size; ++r) value[r] = r < size ? own[r] : Bits{};
      sort_group(value, size, limits);
#pragma unroll
      for (int r = 0; r < Size; ++r)
        if (r < size) own[descending ? size - 1 - r : r] = value[r];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < elements; i += kStagedThreads) y[base + i] = tile[i / size * pitch + i % size];
    __syncthreads();
  }
}

// ---- any lanes, one column for each thread

template <class Bits, int Size>
__global__ void sort_small(const Bits* __restrict__ x, Bits* __restrict__ y,
                           GroupSortShape shape, Limits<Bits> limits) {
  const int size = static_cast<int>(shape.size);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; column < shape.columns();
       column += stride) {
    const int64_t base = shape.base(column);
    Bits value[Size];
#pragma unroll
    for (int r = 0; r < Size; ++r) value[r] = r < size ? x[base + r * shape.lanes] : Bits{};
    sort_group(value, size, limits);
#pragma unroll
    for (int r = 0; r < Size; ++r)
      if (r < size) y[base + shape.row(r) * shape.lanes] = value[r];
  }
}

// ---- large groups

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
template <class Bits>
__global__ void sort_large(const Bits* __restrict__ x, Bits* y,
                           GroupSortShape shape, Limits<Bits> limits) {
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
      if (limits.is_nan(value)) nan = 1;
      key[i * stride] = value;
    }
    __syncthreads();
    sort_with_block(key, shape.size, stride);
    // Both ends at once, because the keys may lie where the results go.
    for (int64_t i = threadIdx.x; 2 * i < shape.size; i += blockDim.x) {
      const int64_t mirror = shape.size - 1 - i;
      const Bits low = key[i * stride], high = key[mirror * stride];
      y[base + shape.row(i) * shape.lanes] = nan ? limits.quiet_nan : ordered(low);
      y[base + shape.row(mirror) * shape.lanes] = nan ? limits.quiet_nan : ordered(high);
    }
    __syncthreads();
  }
}

// ---- which way

template <class Bits>
struct Sort {
  const Bits* x;
  Bits* y;
  GroupSortShape shape;
  Limits<Bits> limits;
  cudaStream_t stream;

  int size() const { return static_cast<int>(shape.size); }

  template <int Size>
  bool in_packs() const {
    constexpr int64_t kColumns = kPackBytes<Bits, Size> / static_cast<int64_t>(sizeof(Bits));
    if (!aligned_for_packs(x, y) || shape.lanes == 1 || shape.lanes % kColumns != 0) return false;
    const int64_t packs = shape.columns() / kColumns;
    LIPDEPLOY_LAUNCH(blocks_for(packs, kThreads), kThreads, stream, (sort_packs<Bits, Size>), x, y,
                     static_cast<uint32_t>(packs), static_cast<uint32_t>(shape.lanes), size(), shape.descending, limits);
    return true;
  }

  template <int Size>
  bool within_packs() const {
    if constexpr (Size * sizeof(Bits) <= 16) {
      const int64_t elements = shape.columns() * shape.size;
      if (!aligned_for_packs(x, y) || shape.lanes != 1 || shape.size != Size || elements % Pack<Bits>::kCount != 0)
        return false;
      const int64_t packs = elements / Pack<Bits>::kCount;
      LIPDEPLOY_LAUNCH(blocks_for(packs, kThreads), kThreads, stream, (sort_within_packs<Bits, Size>), x, y,
                       static_cast<uint32_t>(packs), shape.descending, limits);
      return true;
    }
    return false;
  }

  template <int Size>
  bool staged() const {
    if (shape.lanes != 1) return false;
    LIPDEPLOY_LAUNCH(blocks_for(shape.columns(), kStagedThreads), kStagedThreads, stream, (sort_staged<Bits, Size>), x, y,
                     static_cast<uint32_t>(shape.columns()), size(), shape.descending, limits);
    return true;
  }

  void one_by_one() const {
    const int64_t blocks = blocks_for(shape.columns(), kThreads);
    if (shape.size <= 8) {
      LIPDEPLOY_LAUNCH(blocks, kThreads, stream, (sort_small<Bits, 8>), x, y, shape, limits);
    } else {
      LIPDEPLOY_LAUNCH(blocks, kThreads, stream, (sort_small<Bits, kLargestInRegisters>), x, y, shape, limits);
    }
  }

  template <int Size>
  void small() const {
    if (!fits_32_bits(shape.columns() * shape.size)) return one_by_one();
    if (in_packs<Size>() || within_packs<Size>() || staged<(Size < 4 ? 4 : Size)>()) return;
    one_by_one();
  }

  void piece() const {
    if (shape.size <= 2) {
      small<2>();
    } else if (shape.size <= 4) {
      small<4>();
    } else if (shape.size <= 8) {
      small<8>();
    } else if (shape.size <= 16) {
      small<16>();
    } else if (shape.size <= kLargestInRegisters) {
      small<kLargestInRegisters>();
    } else {
      LIPDEPLOY_LAUNCH(blocks_for(shape.columns(), 1), kThreads, stream, (sort_large<Bits>), x, y, shape, limits);
    }
  }
};

template <class Element>
int32_t group_sort_cuda(const void* input, void* output, const GroupSortShape& shape, cudaStream_t stream) {
  using Bits = typename Element::Bits;
  if (shape.columns() == 0 || shape.size == 0) return 0;
  const int64_t block = shape.size * shape.lanes, most = std::max<int64_t>(kMostAtOnce / block, 1);
  for (int64_t first = 0; first < shape.blocks; first += most) {
    GroupSortShape piece = shape;
    piece.blocks = std::min(most, shape.blocks - first);
    Sort<Bits>{static_cast<const Bits*>(input) + first * block, static_cast<Bits*>(output) + first * block, piece,
               {Element::kInfinity, Element::kQuietNaN}, stream}
        .piece();
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
