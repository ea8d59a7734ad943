// GroupSort on the CPU: sorting networks on vectors (simd/sort.h) wherever there are columns enough to fill them, and a
// radix sort for single large groups.
#include "lipdeploy/group_sort.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

// Below this, counting digits costs more than comparing.
constexpr int64_t kSmallestRadix = 256;
// The tiles of smaller groups live on the stack.
constexpr int64_t kLargestStackTile = 64;
constexpr int64_t kColumnsPerTile = 16;

// Stable sort by one byte after the other, the lowest first. Bytes that all keys share are skipped.
template <class Bits>
void radix_sort(std::vector<Bits>& keys, std::vector<Bits>& spare) {
  using Unsigned = std::make_unsigned_t<Bits>;
  constexpr int kDigits = sizeof(Bits);
  constexpr Unsigned kSign = Unsigned{1} << (8 * sizeof(Bits) - 1);
  std::vector<size_t> counts(kDigits * 256);
  for (Bits& key : keys) {
    const Unsigned shifted = static_cast<Unsigned>(key) ^ kSign;
    key = static_cast<Bits>(shifted);
    for (int d = 0; d < kDigits; ++d) ++counts[d * 256 + ((shifted >> (8 * d)) & 255)];
  }
  spare.resize(keys.size());
  for (int d = 0; d < kDigits; ++d) {
    size_t* count = &counts[d * 256];
    if (std::any_of(count, count + 256, [&](size_t n) { return n == keys.size(); })) continue;
    size_t next = 0;
    for (int digit = 0; digit < 256; ++digit) next += std::exchange(count[digit], next);
    for (const Bits key : keys) spare[count[(static_cast<Unsigned>(key) >> (8 * d)) & 255]++] = key;
    keys.swap(spare);
  }
  for (Bits& key : keys) key = static_cast<Bits>(static_cast<Unsigned>(key) ^ kSign);
}

template <class Element>
struct Sorter {
  using Bits = typename Element::Bits;
  SortCall<Bits> call;
  const CpuKernels* kernels;

  // A network sorts as many columns as a vector has lanes at once; for too few columns that is wasted.
  bool by_network(int64_t columns) const {
    const int64_t size = call.shape.size;
    return size <= kLargestStackTile || (size <= kLargestNetwork && columns >= kColumnsPerTile / 4);
  }

  void columns(int64_t begin, int64_t end) const {
    if (!by_network(end - begin)) return one_by_one(begin, end);
    const size_t bytes = static_cast<size_t>(kTilesAtOnce * call.shape.size) * kernels->vector_bytes;
    if (call.shape.size <= kLargestStackTile) {
      alignas(64) unsigned char tile[kTilesAtOnce * kLargestStackTile * 64];
      return kernels->sort(Bits{})(call, begin, end, tile);
    }
    const std::unique_ptr<void, decltype(&std::free)> tile(std::aligned_alloc(64, (bytes + 63) / 64 * 64), &std::free);
    if (tile == nullptr) throw std::bad_alloc();
    kernels->sort(Bits{})(call, begin, end, tile.get());
  }

  void one_by_one(int64_t begin, int64_t end) const {
    const GroupSortShape& shape = call.shape;
    std::vector<Bits> keys(shape.size), spare;
    for (int64_t column = begin; column < end; ++column) {
      const int64_t base = shape.base(column);
      for (int64_t r = 0; r < shape.size; ++r) keys[r] = ordered(call.x[base + r * shape.lanes]);
      shape.size < kSmallestRadix ? std::sort(keys.begin(), keys.end()) : radix_sort(keys, spare);
      const bool nan = is_nan_key<Element>(keys.front()) || is_nan_key<Element>(keys.back());
      for (int64_t r = 0; r < shape.size; ++r)
        call.y[base + shape.row(r) * shape.lanes] = nan ? Element::kQuietNaN : ordered(keys[r]);
    }
  }
};

}  // namespace

template <class Element>
void group_sort_cpu(const void* x, void* y, const GroupSortShape& given, const Parallel& parallel) {
  if (given.columns() == 0 || given.size == 0) return;
  using Bits = typename Element::Bits;
  GroupSortShape shape = given;
  if (shape.size == 1) shape = {1, 1, given.columns(), false};
  const bool stream = shape.columns() * shape.size * static_cast<int64_t>(sizeof(Bits)) >= kStreamBytes;
  const Sorter<Element> sorter{
      {static_cast<const Bits*>(x), static_cast<Bits*>(y), shape, Element::kInfinity, Element::kQuietNaN, stream},
      &cpu_kernels()};
  // Whole tiles, so that no piece ends in a ragged one.
  int64_t grain = std::max<int64_t>(1, kElementsPerTask / shape.size / kColumnsPerTile) * kColumnsPerTile;
  if (shape.size > kLargestNetwork) grain = 1;
  parallel(shape.columns(), grain, [&sorter](int64_t begin, int64_t end) { sorter.columns(begin, end); });
}

}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                              \
  template void lipdeploy::group_sort_cpu<lipdeploy::Element>(const void*, void*, const lipdeploy::GroupSortShape&, \
                                                              const lipdeploy::Parallel&);                        \
  int32_t lipdeploy_group_sort_##T##_cpu(LIPDEPLOY_GROUP_SORT_ARGUMENTS) {                                         \
    lipdeploy::GroupSortShape shape;                                                                              \
    if (!lipdeploy::group_sort_shape(outer, channels, inner, group_size, layout, descending, &shape))             \
      return LIPDEPLOY_BAD_ARGUMENT;                                                                              \
    try {                                                                                                         \
      lipdeploy::group_sort_cpu<lipdeploy::Element>(x, y, shape, lipdeploy::run_inline);                          \
    } catch (...) {                                                                                               \
      return LIPDEPLOY_OUT_OF_MEMORY;                                                                             \
    }                                                                                                             \
    return 0;                                                                                                     \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
