// GroupSort on CUDA. Groups of up to 32 are sorted by one thread each, in registers; larger ones by one thread block
// each, in shared memory where they fit and in place in the output where they do not.
//
// Small groups reach memory in one of three ways. Lanes side by side (images, strided layouts): a thread sorts as many
// neighbouring columns as fill 16 bytes, or fewer where their keys would not fit the registers or lanes are not a multiple
// of them. Groups one after the
// other, of a size that divides 16 bytes: a thread sorts the groups of 16 bytes. Other groups one after the other: a
// block copies a contiguous piece to shared memory and back, so that every access to memory is coalesced; 16-bit numbers
// go by twos.
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

  // NaNs lie beyond both infinities, so that one of the ends of sorted keys is a NaN where there is one.
  __device__ __forceinline__ bool any_nan(Bits lowest, Bits highest) const {
    return (lowest < static_cast<Bits>(~infinity)) | (highest > infinity);
  }
};

// One group: numbers in, sorted numbers out, ascending. What fills the array up to a power of two lies behind `count`:
// infinities, among which those of the group are found again, and behind which only NaNs come.
template <int Size, class Bits>
__device__ __forceinline__ void sort_group(Bits (&value)[Size], int count, Limits<Bits> limits) {
#pragma unroll
  for (int i = 0; i < Size; ++i) value[i] = i < count ? ordered(value[i]) : limits.infinity;
  sort_registers(value);
  const bool nan = limits.any_nan(value[0], value[Size - 1]);
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

template <class Bits, int Size, int Bytes>
__global__ void sort_columns(const Bits* __restrict__ x, Bits* __restrict__ y,
                             uint32_t packs, Divider by_lanes, int size, bool descending, Limits<Bits> limits) {
  using P = Pack<Bits, Bytes>;
  constexpr uint32_t kCount = P::kCount;
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const uint32_t column = i * kCount, lanes = by_lanes.divisor, block = by_lanes.quotient(column);
    const uint32_t base = block * lanes * size + (column - block * lanes);
    P rows[Size];
#pragma unroll
    for (int r = 0; r < Size; ++r)
      rows[r] = r < size ? P::load(x + base + r * lanes) : P{};
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

// A word is what one access moves; `words` of them are a group.
template <class Bits, int Bytes, int Size>
__global__ void sort_staged(const Bits* __restrict__ x, Bits* __restrict__ y,
                            uint32_t groups, Divider words, bool descending, Limits<Bits> limits) {
  using Word = Pack<Bits, Bytes>;
  constexpr int kMost = Size / Word::kCount;
  // An odd pitch, so that the threads of a warp meet different banks.
  __shared__ Word tile[kStagedThreads * (kMost + 1)];
  const uint32_t here = words.divisor, padding = here % 2 == 0, size = here * Word::kCount;
  for (uint32_t first = blockIdx.x * kStagedThreads; first < groups; first += gridDim.x * kStagedThreads) {
    const uint32_t count = groups - first < kStagedThreads ? groups - first : kStagedThreads;
    const Bits* from = x + first * size;
    Bits* to = y + first * size;
    for (uint32_t i = threadIdx.x; i < count * here; i += kStagedThreads)
      tile[i + padding * words.quotient(i)] = Word::load(from + i * Word::kCount);
    __syncthreads();
    if (threadIdx.x < count) {
      Word* own = tile + threadIdx.x * (here + padding);
      Bits value[Size];
#pragma unroll
      for (uint32_t w = 0; w < kMost; ++w) {
        const Word word = w < here ? own[w] : Word{};
#pragma unroll
        for (int k = 0; k < Word::kCount; ++k) value[w * Word::kCount + k] = word.at[k];
      }
      sort_group(value, static_cast<int>(size), limits);
#pragma unroll
      for (uint32_t w = 0; w < kMost; ++w) {
        Word word;
#pragma unroll
        for (int k = 0; k < Word::kCount; ++k)
          word.at[descending ? Word::kCount - 1 - k : k] = value[w * Word::kCount + k];
        if (w < here) own[descending ? here - 1 - w : w] = word;
      }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count * here; i += kStagedThreads)
      tile[i + padding * words.quotient(i)].store(to + i * Word::kCount);
    __syncthreads();
  }
}

// ---- large groups

constexpr int kWarp = 32;

// Sorts key[0], key[stride], ... with the whole block, any count. Every comparator points the same way, so that what
// lies beyond the end may be imagined larger than everything and is never touched. Thread p of a stage has its p-th
// comparator: up to a distance of 32 a warp meets its own keys only, and need not wait for the others.
template <class Index, class Bits>
__device__ __forceinline__ void sort_with_block(Bits* key, Index count, Index stride) {
  Index comparators = 1;
  while (2 * comparators < count) comparators *= 2;
  for (Index width = 2; width <= 2 * comparators; width *= 2) {
    for (Index distance = width / 2; distance > 0; distance /= 2) {
      const Index flip = distance == width / 2 ? width - 1 : distance;
      for (Index p = threadIdx.x; p < comparators; p += blockDim.x) {
        const Index i = 2 * p - (p & (distance - 1)), j = i ^ flip;
        if (j < count) compare_exchange(key[i * stride], key[j * stride]);
      }
      const Index next = distance > 1 ? distance / 2 : width;
      if (distance > kWarp || next > kWarp) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

// One block, one group: of up to `Shared` keys in shared memory, of more where the result goes. Positions within a group
// are of type Index.
template <class Bits, class Index, int Shared>
__global__ void sort_large(const Bits* __restrict__ x, Bits* y, GroupSortShape shape, Limits<Bits> limits) {
  __shared__ Bits tile[Shared < 1 ? 1 : Shared];
  const Index size = static_cast<Index>(shape.size), lanes = static_cast<Index>(shape.lanes);
  for (int64_t column = blockIdx.x; column < shape.columns(); column += gridDim.x) {
    const int64_t base = shape.base(column);
    const Bits* from = x + base;
    Bits* to = y + base;
    Bits* key = Shared > 0 ? tile : to;
    const Index stride = Shared > 0 ? 1 : lanes;
    for (Index i = threadIdx.x; i < size; i += blockDim.x) key[i * stride] = ordered(from[i * lanes]);
    __syncthreads();
    sort_with_block(key, size, stride);
    const bool nan = limits.any_nan(key[0], key[(size - 1) * stride]);
    __syncthreads();
    // Both ends at once, because the keys may lie where the results go.
    for (Index i = threadIdx.x; 2 * i < size; i += blockDim.x) {
      const Index mirror = size - 1 - i;
      const Bits low = key[i * stride], high = key[mirror * stride];
      to[(shape.descending ? mirror : i) * lanes] = nan ? limits.quiet_nan : ordered(low);
      to[(shape.descending ? i : mirror) * lanes] = nan ? limits.quiet_nan : ordered(high);
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
    if (sizeof(Bits) == 2 && size() % 2 == 0 && aligned_for_packs(x, y, 4)) {
      staged_by_words<Size, 4>();
    } else {
      staged_by_words<Size, sizeof(Bits)>();
    }
    return true;
  }

  template <int Size, int Bytes>
  void staged_by_words() const {
    constexpr int kWord = Bytes < static_cast<int>(sizeof(Bits)) ? sizeof(Bits) : Bytes;
    LIPDEPLOY_LAUNCH(blocks_for(shape.columns(), kStagedThreads), kStagedThreads, stream,
                     (sort_staged<Bits, kWord, Size>), x, y, static_cast<uint32_t>(shape.columns()),
                     Divider::by(size() / Pack<Bits, kWord>::kCount), shape.descending, limits);
  }

  // In packs of `Bytes`, or of fewer.
  template <int Size, int Bytes>
  void in_columns() const {
    constexpr int kColumns = Pack<Bits, Bytes>::kCount;
    if constexpr (kColumns > 1) {
      if (!aligned_for_packs(x, y, Bytes) || shape.lanes % kColumns != 0) return in_columns<Size, Bytes / 2>();
    }
    const int64_t packs = shape.columns() / kColumns;
    LIPDEPLOY_LAUNCH(blocks_for(packs, kThreads), kThreads, stream, (sort_columns<Bits, Size, Bytes>), x, y,
                     static_cast<uint32_t>(packs), Divider::by(shape.lanes), size(), shape.descending, limits);
  }

  template <int Size>
  void small() const {
    if (!fits_32_bits(shape.columns() * shape.size)) return large();  // one sample, of more than 2^31 numbers
    if (within_packs<Size>() || staged<(Size < 4 ? 4 : Size)>()) return;
    in_columns<Size, kPackBytes<Bits, Size>>();
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
      large();
    }
  }

  void large() const {
    constexpr int kMost = kSharedBytes / static_cast<int>(sizeof(Bits)), kFew = 1024;
    const bool narrow = fits_32_bits(shape.size * shape.lanes);
    if (narrow && shape.size <= kFew) {
      large_of<int32_t, kFew>();
    } else if (narrow && shape.size <= kMost) {
      large_of<int32_t, kMost>();
    } else {
      large_of<int64_t, 0>();
    }
  }

  // A thread for each comparator of a stage, as far as they go.
  template <class Index, int Shared>
  void large_of() const {
    int threads = kWarp;
    while (threads < kThreads && 2 * threads < shape.size) threads *= 2;
    LIPDEPLOY_LAUNCH(blocks_for(shape.columns(), 1), threads, stream, (sort_large<Bits, Index, Shared>), x, y, shape,
                     limits);
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
