// GroupSort on CUDA. Groups of up to 32 are sorted by one thread each, in registers; larger ones by one thread block
// each, in shared memory where they fit and in place in the output where they do not.
//
// Small groups reach memory in one of three ways. Lanes side by side (images, strided layouts): a thread sorts as many
// neighbouring columns as fill 16 bytes, or fewer where their keys would not fit the registers or lanes are no multiple of
// them. Groups one after the other, of a size that divides 16 bytes: a thread sorts the groups of 16 bytes. Other groups
// one after the other: a block copies a contiguous piece to shared memory and back, so that every access to memory is
// coalesced.
//
// The kernels know types by their bits only: the two 16-bit types share code, and differ in what a NaN is. Two groups of
// 16-bit numbers are sorted at once (sort_keys.h). Positions are 32 bits wide, because 64-bit divisions cost more than the
// memory takes; larger tensors are sorted piece by piece.
#include "lipdeploy/group_sort.h"

#include <utility>

#include "launch.h"
#include "lipdeploy/entry_points.h"
#include "sort_keys.h"

namespace lipdeploy {
namespace {

constexpr int kLargestInRegisters = 32;
constexpr int kSharedBytes = 32768;

template <int Size, class Key, size_t... I>
__device__ __forceinline__ void sort_by_network(Key (&key)[Size], std::index_sequence<I...>) {
  (compare_exchange(key[std::integral_constant<int, kNetwork<Size>.low[I]>::value],
                    key[std::integral_constant<int, kNetwork<Size>.high[I]>::value]), ...);
}

// Every index is known at compile time, so that the keys stay in registers.
template <int Size, class Key>
__device__ __forceinline__ void sort_registers(Key (&key)[Size]) {
  sort_by_network(key, std::make_index_sequence<kNetwork<Size>.count>{});
}

// GPUs before sm_90 compare whole registers only. As 32 bits, the halves that lie higher are in order whatever is below.
#if defined(LIPDEPLOY_SORT_HALVES) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900)
template <int Size>
__device__ __forceinline__ void sort_registers(Pair (&key)[Size]) {
  int32_t high[Size], low[Size];
#pragma unroll
  for (int i = 0; i < Size; ++i) {
    high[i] = static_cast<int32_t>(key[i].both);
    low[i] = static_cast<int32_t>(key[i].both << 16);
  }
  sort_registers(high);
  sort_registers(low);
#pragma unroll
  for (int i = 0; i < Size; ++i) key[i] = Pair::of(low[i] >> 16, high[i] >> 16);
}
#endif

// One group, or with pairs as keys two: numbers in, sorted numbers out. What fills the array up to a power of two lies
// behind `count`: infinities, among which those of the group are found again, and behind which only NaNs come.
template <int Size, class Key>
__device__ __forceinline__ void sort_group(Key (&key)[Size], int count, bool descending, const Limits<Key>& limits) {
#pragma unroll
  for (int i = 0; i < Size; ++i) key[i] = i < count ? flipped(ordered(key[i]), descending) : limits.infinity;
  sort_registers(key);
  const auto numbers = all_numbers(key[0], key[Size - 1], limits.infinity);
#pragma unroll
  for (int i = 0; i < Size; ++i) key[i] = chosen(numbers, ordered(flipped(key[i], descending)), limits.quiet_nan);
}

// As many groups one after the other as keys hold, `Size` numbers for each.
template <int Size, class Key, class Bits>
__device__ __forceinline__ void sort_numbers(Bits* number, int count, bool descending, const Limits<Key>& limits) {
  Key key[Size];
#pragma unroll
  for (int r = 0; r < Size; ++r) take(key[r], number + r, Size);
  sort_group(key, count, descending, limits);
#pragma unroll
  for (int r = 0; r < Size; ++r) give(key[r], number + r, Size);
}

// As many neighbouring columns for one thread: 16 bytes of them, but at most 32 registers.
template <class Bits, int Size>
constexpr int kPackBytes = [] {
  const int word = sizeof(Bits) < 4 ? 4 : sizeof(Bits), keys = 32 / Size < 1 ? 1 : 32 / Size;
  return keys * word < 16 ? keys * word : 16;
}();

// ---- lanes side by side

// A row of a group is `lanes` keys. Exact: groups of just Size.
template <class Key, int Size, int Bytes, bool Exact>
__global__ void sort_columns(const Key* __restrict__ x, Key* __restrict__ y,
                             uint32_t packs, Divider by_lanes, int count, bool descending, Limits<Key> limits) {
  using P = Pack<Key, Bytes>;
  const int size = Exact ? Size : count;
  const uint32_t stride = gridDim.x * blockDim.x, lanes = by_lanes.divisor;
  // Modulo 2^32, where steps may go down.
  const uint32_t first_row = descending ? (size - 1) * lanes : 0, to_next_row = descending ? 0 - lanes : lanes;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const uint32_t column = i * P::kCount, block = by_lanes.quotient(column);
    const uint32_t base = block * lanes * size + (column - block * lanes);
    P rows[Size];
#pragma unroll
    for (int r = 0; r < Size; ++r)
      rows[r] = r < size ? P::load(x + base + r * lanes) : P{};
#pragma unroll
    for (int k = 0; k < P::kCount; ++k) {
      Key key[Size];
#pragma unroll
      for (int r = 0; r < Size; ++r) key[r] = rows[r].at[k];
      sort_group(key, size, false, limits);
#pragma unroll
      for (int r = 0; r < Size; ++r) rows[r].at[k] = key[r];
    }
#pragma unroll
    for (int r = 0; r < Size; ++r)
      if (r < size) rows[r].store(y + (base + first_row + r * to_next_row));
  }
}

// ---- groups one after the other, whole groups in 16 bytes

// One pack for each thread, or two where a pack is one group and a key compares two.
template <class Bits, int Size>
__global__ void sort_within_packs(const Bits* __restrict__ x, Bits* __restrict__ y,
                                  uint32_t threads, bool descending, Limits<KeyOf<Bits>> limits) {
  using P = Pack<Bits>;
  constexpr int kAtOnce = kGroups<KeyOf<Bits>> * Size, kPacks = kAtOnce > P::kCount ? kAtOnce / P::kCount : 1;
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < threads; i += stride) {
    Bits number[kPacks * P::kCount];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) P::load(x + (i + p * threads) * P::kCount).copy_to(number + p * P::kCount);
#pragma unroll
    for (int first = 0; first < kPacks * P::kCount; first += kAtOnce)
      sort_numbers<Size>(number + first, Size, descending, limits);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) P::of(number + p * P::kCount).store(y + (i + p * threads) * P::kCount);
  }
}

// ---- groups one after the other, through shared memory

constexpr int kStagedThreads = 128;

// A word is what one access moves; `words` of them are a group. Exact: groups of just Size.
template <class Bits, int Bytes, int Size, bool Exact>
__global__ void sort_staged(const Bits* __restrict__ x, Bits* __restrict__ y,
                            uint32_t groups, Divider words, bool descending, Limits<KeyOf<Bits>> limits) {
  using Word = Pack<Bits, Bytes>;
  constexpr uint32_t kAtOnce = kGroups<KeyOf<Bits>>, kTile = kAtOnce * kStagedThreads, kMost = Size / Word::kCount;
  // An odd pitch, so that the threads of a warp meet different banks.
  __shared__ Word tile[kTile * (kMost | 1)];
  const uint32_t here = Exact ? kMost : words.divisor, pitch = here | 1, size = here * Word::kCount;
  const auto at = [&](uint32_t i) { return i + (pitch - here) * (Exact ? i / kMost : words.quotient(i)); };
  for (uint32_t first = blockIdx.x * kTile; first < groups; first += gridDim.x * kTile) {
    const uint32_t count = groups - first < kTile ? groups - first : kTile;
    const Bits* from = x + first * size;
    Bits* to = y + first * size;
    for (uint32_t i = threadIdx.x; i < count * here; i += kStagedThreads) tile[at(i)] = Word::load(from + i * Word::kCount);
    __syncthreads();
    // The second group of a key may lie behind the last: then it is sorted and left where it is.
    if (threadIdx.x < count) {
      Word* own = tile + threadIdx.x * pitch;
      Bits number[kAtOnce * Size];
#pragma unroll
      for (uint32_t w = 0; w < kAtOnce * kMost; ++w) {
        const uint32_t group = w / kMost, of_group = w % kMost;
        const Word word = of_group < here ? own[group * kStagedThreads * pitch + of_group] : Word{};
        word.copy_to(number + w * Word::kCount);
      }
      sort_numbers<Size>(number, static_cast<int>(size), descending, limits);
#pragma unroll
      for (uint32_t w = 0; w < kAtOnce * kMost; ++w) {
        const uint32_t group = w / kMost, of_group = w % kMost;
        if (of_group < here) own[group * kStagedThreads * pitch + of_group] = Word::of(number + w * Word::kCount);
      }
    }
    __syncthreads();
    // The next turn needs no barrier in front: a thread loads to where it stored from.
    for (uint32_t i = threadIdx.x; i < count * here; i += kStagedThreads) tile[at(i)].store(to + i * Word::kCount);
  }
}

// ---- large groups

constexpr int kWarp = 32;

// Sorts key[0], key[stride], ... with the whole block, any count. Every comparator points the same way, so that what
// lies beyond the end may be imagined larger than everything and is never touched. Thread p of a stage has its p-th
// comparator: up to a distance of 32 a warp meets its own keys only, and need not wait for the others. After the last
// stage all have met: it is wider than a warp's keys, or the block is one warp.
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
    const bool numbers = all_numbers(key[0], key[(size - 1) * stride], limits.infinity);
    __syncthreads();
    // Both ends at once, because the keys may lie where the results go.
    for (Index i = threadIdx.x; 2 * i < size; i += blockDim.x) {
      const Index mirror = size - 1 - i;
      const Bits low = key[i * stride], high = key[mirror * stride];
      to[(shape.descending ? mirror : i) * lanes] = chosen(numbers, ordered(low), limits.quiet_nan);
      to[(shape.descending ? i : mirror) * lanes] = chosen(numbers, ordered(high), limits.quiet_nan);
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
  Bits infinity, quiet_nan;
  cudaStream_t stream;

  int size() const { return static_cast<int>(shape.size); }

  template <class Key>
  Limits<Key> limits() const {
    return limits_of<Key>(infinity, quiet_nan);
  }

  template <int Size>
  bool within_packs() const {
    if constexpr (Size * sizeof(Bits) <= 16) {
      constexpr int kAtOnce = kGroups<KeyOf<Bits>> * Size, kNumbers = std::max(kAtOnce, Pack<Bits>::kCount);
      const int64_t elements = shape.columns() * shape.size;
      if (!aligned_for_packs(x, y) || shape.lanes != 1 || shape.size != Size || elements % kNumbers != 0) return false;
      const int64_t threads = elements / kNumbers;
      LIPDEPLOY_LAUNCH(blocks_for(threads, kThreads), kThreads, stream, (sort_within_packs<Bits, Size>), x, y,
                       static_cast<uint32_t>(threads), shape.descending, limits<KeyOf<Bits>>());
      return true;
    }
    return false;
  }

  // By words of 16 bytes where they are given, of two 16-bit numbers, or by single numbers.
  template <int Size>
  bool staged() const {
    if (shape.lanes != 1) return false;
    if constexpr (Size * sizeof(Bits) > 16) {
      if (size() == Size && aligned_for_packs(x, y)) return staged_by<16, Size, true>();
    }
    if constexpr (sizeof(Bits) == 2) {
      if (size() % 2 == 0 && aligned_for_packs(x, y, 4)) return staged_by<4, Size, false>();
    }
    return staged_by<sizeof(Bits), Size, false>();
  }

  template <int Bytes, int Size, bool Exact>
  bool staged_by() const {
    using Key = KeyOf<Bits>;
    LIPDEPLOY_LAUNCH(blocks_for(shape.columns(), kGroups<Key> * kStagedThreads), kStagedThreads, stream,
                     (sort_staged<Bits, Bytes, Size, Exact>), x, y, static_cast<uint32_t>(shape.columns()),
                     Divider::by(size() / Pack<Bits, Bytes>::kCount), shape.descending, limits<Key>());
    return true;
  }

  // In packs of `Bytes`, or of fewer. Where those hold two 16-bit numbers, two columns share their keys.
  template <int Size, int Bytes>
  void in_columns() const {
    constexpr int kColumns = Pack<Bits, Bytes>::kCount;
    if constexpr (kColumns > 1) {
      if (!aligned_for_packs(x, y, Bytes) || shape.lanes % kColumns != 0) return in_columns<Size, Bytes / 2>();
    }
    using Key = std::conditional_t<(kColumns > 1), KeyOf<Bits>, Bits>;
    if (size() == Size) {
      columns_of<Key, Size, Bytes, true>();
    } else {
      columns_of<Key, Size, Bytes, false>();
    }
  }

  template <class Key, int Size, int Bytes, bool Exact>
  void columns_of() const {
    const int64_t packs = shape.columns() / Pack<Bits, Bytes>::kCount;
    LIPDEPLOY_LAUNCH(blocks_for(packs, kThreads), kThreads, stream, (sort_columns<Key, Size, Bytes, Exact>),
                     reinterpret_cast<const Key*>(x), reinterpret_cast<Key*>(y), static_cast<uint32_t>(packs),
                     Divider::by(shape.lanes / kGroups<Key>), size(), shape.descending, limits<Key>());
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
                     limits<Bits>());
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
               Element::kInfinity, Element::kQuietNaN, stream}
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
