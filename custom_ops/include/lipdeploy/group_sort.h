// GroupSort: sort the channels of each group.
//
// types      float16, bfloat16, float32, float64
// valid      any input; group_size >= 1 divides the axis, 0 means the whole axis
// error      none: values are moved, not computed
// NaN        anywhere in a group makes the whole group the canonical quiet NaN
// -0, +0     -0 sorts below +0
// +-Inf      ordinary values
//
// The tensor is seen as (blocks, size, lanes) with the group along the middle: an adjacent layout puts the groups into
// blocks, a strided one into lanes. Column q, of blocks*lanes, is one group. Host and device; no ONNX Runtime type.
#pragma once

#include "lipdeploy/element.h"

namespace lipdeploy {

struct GroupSortShape {
  int64_t blocks, size, lanes;
  bool descending;

  LIPDEPLOY_INLINE int64_t columns() const { return blocks * lanes; }
  LIPDEPLOY_INLINE int64_t base(int64_t column) const { return (column / lanes) * size * lanes + column % lanes; }
  LIPDEPLOY_INLINE int64_t row(int64_t rank) const { return descending ? size - 1 - rank : rank; }
};

// Returns false where group_size is negative or does not divide the channels, or the layout is unknown.
inline bool group_sort_shape(int64_t outer, int64_t channels, int64_t inner, int64_t group_size, int64_t layout,
                             int64_t descending, GroupSortShape* shape) {
  const int64_t size = group_size == 0 ? channels : group_size;
  if (outer < 0 || channels < 0 || inner < 0 || group_size < 0) return false;
  if ((layout != 0 && layout != 1) || (descending != 0 && descending != 1)) return false;
  if (size != 0 && channels % size != 0) return false;
  const int64_t groups = size == 0 ? 0 : channels / size;
  *shape = layout == 0 ? GroupSortShape{outer * groups, size, inner, descending == 1}
                       : GroupSortShape{outer, size, groups * inner, descending == 1};
  return true;
}

// The bits of a number as an integer that grows with it; its own inverse. NaNs lie beyond both infinities.
template <class Bits>
LIPDEPLOY_INLINE Bits ordered(Bits bits) {
  constexpr int kSignShift = 8 * sizeof(Bits) - 1;
  return static_cast<Bits>(bits ^ ((bits >> kSignShift) & kLargest<Bits>));
}

template <class Element>
LIPDEPLOY_INLINE bool is_nan_key(typename Element::Bits key) {
  return (key > Element::kInfinity) | (key < static_cast<typename Element::Bits>(~Element::kInfinity));
}

// Batcher's odd-even merge sort (Knuth, volume 3, 5.2.2, algorithm M) for sizes that stay in registers.
template <int Size>
struct Network {
  int low[Size * Size] = {}, high[Size * Size] = {}, count = 0;
  constexpr Network() {
    for (int step = 1; step < Size; step *= 2)
      for (int inner = step; inner >= 1; inner /= 2)
        for (int start = inner % step; start < Size - inner; start += 2 * inner)
          for (int i = start; i < start + inner && i < Size - inner; ++i)
            if (i / (2 * step) == (i + inner) / (2 * step)) {
              low[count] = i;
              high[count++] = i + inner;
            }
  }
};
template <int Size>
constexpr Network<Size> kNetwork;

template <class Bits>
LIPDEPLOY_INLINE void compare_exchange(Bits& smaller, Bits& larger) {
  const Bits a = smaller, b = larger;
  smaller = a < b ? a : b;
  larger = a < b ? b : a;
}

}  // namespace lipdeploy
