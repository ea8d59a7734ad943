// GroupSort on the CPU. Groups of up to 64 go through a sorting network on tiles of columns, so that every comparator
// is a vector minimum and maximum; larger groups through std::sort.
#include "lipdeploy/group_sort.h"

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

constexpr int64_t kTileWidth = 64;
constexpr int64_t kLargestNetwork = 64;

template <class Element, class Bits = typename Element::Bits>
LIPDEPLOY_INLINE void sort_pair(Bits a, Bits b, Bits* low, Bits* high) {
  Bits smaller = ordered(a), larger = ordered(b);
  compare_exchange(smaller, larger);
  const bool nan = is_nan_key<Element>(smaller) | is_nan_key<Element>(larger);
  *low = nan ? Element::kQuietNaN : ordered(smaller);
  *high = nan ? Element::kQuietNaN : ordered(larger);
}

// Pairs along contiguous lanes.
template <class Element, class Bits = typename Element::Bits>
LIPDEPLOY_MULTIVERSION void sort_pair_rows(const Bits* __restrict a, const Bits* __restrict b, Bits* __restrict low,
                                           Bits* __restrict high, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sort_pair<Element>(a[i], b[i], &low[i], &high[i]);
}

// Pairs that lie side by side.
template <class Element, class Bits = typename Element::Bits>
LIPDEPLOY_MULTIVERSION void sort_pair_neighbours(const Bits* __restrict x, Bits* __restrict y, int64_t pairs,
                                                 bool descending) {
  if (descending) {
    for (int64_t i = 0; i < pairs; ++i) sort_pair<Element>(x[2 * i], x[2 * i + 1], &y[2 * i + 1], &y[2 * i]);
  } else {
    for (int64_t i = 0; i < pairs; ++i) sort_pair<Element>(x[2 * i], x[2 * i + 1], &y[2 * i], &y[2 * i + 1]);
  }
}

// Rows of a tile: kTileWidth columns side by side, row r at tile + r*kTileWidth.
template <class Bits>
LIPDEPLOY_INLINE void compare_rows(Bits* __restrict smaller, Bits* __restrict larger) {
  for (int64_t w = 0; w < kTileWidth; ++w) compare_exchange(smaller[w], larger[w]);
}

// Batcher's odd-even merge sort (Knuth, volume 3, 5.2.2, algorithm M), any size; then NaN takes the whole column.
template <class Element, class Bits = typename Element::Bits>
LIPDEPLOY_MULTIVERSION void sort_tile(Bits* tile, int64_t size) {
  for (int64_t step = 1; step < size; step *= 2)
    for (int64_t inner = step; inner >= 1; inner /= 2)
      for (int64_t start = inner % step; start < size - inner; start += 2 * inner)
        for (int64_t i = start; i < std::min(start + inner, size - inner); ++i)
          if (i / (2 * step) == (i + inner) / (2 * step))
            compare_rows(tile + i * kTileWidth, tile + (i + inner) * kTileWidth);
  Bits nan[kTileWidth];
  for (int64_t w = 0; w < kTileWidth; ++w)
    nan[w] = is_nan_key<Element>(tile[w]) | is_nan_key<Element>(tile[(size - 1) * kTileWidth + w]);
  for (int64_t r = 0; r < size; ++r)
    for (int64_t w = 0; w < kTileWidth; ++w) {
      Bits& key = tile[r * kTileWidth + w];
      key = nan[w] ? Element::kQuietNaN : ordered(key);
    }
}

template <class Bits>
LIPDEPLOY_MULTIVERSION void load_row(const Bits* __restrict x, Bits* __restrict row, int64_t width) {
  for (int64_t w = 0; w < width; ++w) row[w] = ordered(x[w]);
}

template <class Element>
struct Sorter {
  using Bits = typename Element::Bits;
  const Bits* x;
  Bits* y;
  GroupSortShape shape;

  void columns(int64_t begin, int64_t end) const {
    if (shape.size == 2 && (shape.lanes == 1 || shape.lanes >= 8)) return pairs(begin, end);
    if (shape.size <= kLargestNetwork) return tiles(begin, end);
    std::vector<Bits> keys(shape.size);
    for (int64_t column = begin; column < end; ++column) one_column(column, keys);
  }

  void pairs(int64_t begin, int64_t end) const {
    if (shape.lanes == 1) {
      sort_pair_neighbours<Element>(x + 2 * begin, y + 2 * begin, end - begin, shape.descending);
      return;
    }
    for (int64_t column = begin; column < end;) {
      const int64_t count = std::min(shape.lanes - column % shape.lanes, end - column), base = shape.base(column);
      sort_pair_rows<Element>(x + base, x + base + shape.lanes, y + base + shape.row(0) * shape.lanes,
                              y + base + shape.row(1) * shape.lanes, count);
      column += count;
    }
  }

  void tiles(int64_t begin, int64_t end) const {
    alignas(64) Bits tile[kLargestNetwork * kTileWidth];
    for (int64_t column = begin; column < end; column += kTileWidth) {
      const int64_t width = std::min(kTileWidth, end - column);
      if (width < kTileWidth) std::fill_n(tile, shape.size * kTileWidth, Bits{0});
      const bool contiguous = column % shape.lanes + width <= shape.lanes;
      contiguous ? load_contiguous(tile, column, width) : load_scattered(tile, column, width);
      sort_tile<Element>(tile, shape.size);
      contiguous ? store_contiguous(tile, column, width) : store_scattered(tile, column, width);
    }
  }

  void load_contiguous(Bits* tile, int64_t column, int64_t width) const {
    const Bits* from = x + shape.base(column);
    for (int64_t r = 0; r < shape.size; ++r) load_row(from + r * shape.lanes, tile + r * kTileWidth, width);
  }

  void store_contiguous(const Bits* tile, int64_t column, int64_t width) const {
    Bits* to = y + shape.base(column);
    for (int64_t r = 0; r < shape.size; ++r)
      std::copy_n(tile + r * kTileWidth, width, to + shape.row(r) * shape.lanes);
  }

  void load_scattered(Bits* tile, int64_t column, int64_t width) const {
    for (int64_t w = 0; w < width; ++w) {
      const Bits* from = x + shape.base(column + w);
      for (int64_t r = 0; r < shape.size; ++r) tile[r * kTileWidth + w] = ordered(from[r * shape.lanes]);
    }
  }

  void store_scattered(const Bits* tile, int64_t column, int64_t width) const {
    for (int64_t w = 0; w < width; ++w) {
      Bits* to = y + shape.base(column + w);
      for (int64_t r = 0; r < shape.size; ++r) to[shape.row(r) * shape.lanes] = tile[r * kTileWidth + w];
    }
  }

  void one_column(int64_t column, std::vector<Bits>& keys) const {
    const int64_t base = shape.base(column);
    for (int64_t r = 0; r < shape.size; ++r) keys[r] = ordered(x[base + r * shape.lanes]);
    std::sort(keys.begin(), keys.end());
    const bool nan = is_nan_key<Element>(keys.front()) | is_nan_key<Element>(keys.back());
    for (int64_t r = 0; r < shape.size; ++r)
      y[base + shape.row(r) * shape.lanes] = nan ? Element::kQuietNaN : ordered(keys[r]);
  }
};

}  // namespace

template <class Element>
void group_sort_cpu(const void* x, void* y, const GroupSortShape& shape, const Parallel& parallel) {
  if (shape.columns() == 0 || shape.size == 0) return;
  using Bits = typename Element::Bits;
  const Sorter<Element> sorter{static_cast<const Bits*>(x), static_cast<Bits*>(y), shape};
  // Whole tiles, so that no piece ends in a ragged one.
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / shape.size / kTileWidth) * kTileWidth;
  parallel(shape.columns(), shape.size > kLargestNetwork ? std::max<int64_t>(1, kElementsPerTask / shape.size / 4) : grain,
           [&sorter](int64_t begin, int64_t end) { sorter.columns(begin, end); });
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
