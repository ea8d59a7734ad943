// GroupSort on vectors: numbers become integers that grow with them, a comparator becomes an integer minimum and
// maximum, one vector holds the same rank of as many groups as it has lanes.
#pragma once

#include "../dispatch.h"
#include "vector.h"

namespace lipdeploy::LIPDEPLOY_ISA {

template <class V>
LIPDEPLOY_INLINE void compare_exchange_vectors(V& low, V& high) {
  const V a = low, b = high;
  low = smaller_of(a, b);
  high = larger_of(a, b);
}

template <int Size, class V, size_t... I>
LIPDEPLOY_INLINE void sort_unrolled([[maybe_unused]] V* rows, std::index_sequence<I...>) {
  (compare_exchange_vectors(rows[kNetwork<Size>.low[I]], rows[kNetwork<Size>.high[I]]), ...);
}

// As `ordered`, for vectors: its own inverse.
template <class Bits, class V>
LIPDEPLOY_INLINE V ordered_vector(V v) {
#if defined(__AVX512F__)
  constexpr int kFirstXorSecondAndThird = 0x78;
  if constexpr (sizeof(V) == 64 && sizeof(Bits) == 4)
    return (V)_mm512_ternarylogic_epi32((__m512i)v, _mm512_srai_epi32((__m512i)v, 31), _mm512_set1_epi32(kLargest<Bits>),
                                        kFirstXorSecondAndThird);
  if constexpr (sizeof(V) == 64 && sizeof(Bits) == 8)
    return (V)_mm512_ternarylogic_epi64((__m512i)v, _mm512_srai_epi64((__m512i)v, 63), _mm512_set1_epi64(kLargest<Bits>),
                                        kFirstXorSecondAndThird);
#endif
  return v ^ ((v >> static_cast<Bits>(8 * sizeof(Bits) - 1)) & kLargest<Bits>);
}

// NaNs sort to the ends, those with a sign to the front, so the first and the last of a group show whether it has any.
template <class V>
LIPDEPLOY_INLINE V end_that_may_be_nan(V first, V last) {
  return larger_of(last, ~first);
}

// Neighbouring vectors of a row that are sorted together: memory gives and takes a row's lines faster in a row.
template <int Size>
constexpr int kBurst = Size == 1 ? 8 : Size == 2 ? 4 : Size <= 8 ? 2 : 1;

template <class Bits>
struct Sort {
  static constexpr int L = kLanes<Bits>;
  using V = Vector<Bits, L>;

  const SortCall<Bits>& call;

  LIPDEPLOY_INLINE V value(V key, V nan_end) const {
    return nan_end > call.infinity ? V{} + call.quiet_nan : ordered_vector<Bits>(key);
  }

#if defined(__AVX512F__)
  // Numbers change places as they are, and only masks come from their order.
  LIPDEPLOY_INLINE void sort_two(V& first, V& second) const {
    const __m512i a = (__m512i)first, b = (__m512i)second;
    const __m512i a_key = (__m512i)ordered_vector<Bits>(first), b_key = (__m512i)ordered_vector<Bits>(second);
    const __m512i quiet_nan = (__m512i)(V{} + call.quiet_nan);
    if constexpr (sizeof(Bits) == 4) {
      const __mmask16 swap = _mm512_cmpgt_epi32_mask(a_key, b_key);
      const __mmask16 nan = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q);
      first = (V)_mm512_mask_mov_epi32(_mm512_mask_mov_epi32(a, swap, b), nan, quiet_nan);
      second = (V)_mm512_mask_mov_epi32(_mm512_mask_mov_epi32(b, swap, a), nan, quiet_nan);
    } else {
      const __mmask8 swap = _mm512_cmpgt_epi64_mask(a_key, b_key);
      const __mmask8 nan = _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_UNORD_Q);
      first = (V)_mm512_mask_mov_epi64(_mm512_mask_mov_epi64(a, swap, b), nan, quiet_nan);
      second = (V)_mm512_mask_mov_epi64(_mm512_mask_mov_epi64(b, swap, a), nan, quiet_nan);
    }
  }
#endif

  template <int Size>
  LIPDEPLOY_INLINE void sort_registers(V* rows) const {
#if defined(__AVX512F__)
    if constexpr (Size == 2 && sizeof(V) == 64) return sort_two(rows[0], rows[1]);
#endif
#pragma GCC unroll 16
    for (int r = 0; r < Size; ++r) rows[r] = ordered_vector<Bits>(rows[r]);
    sort_unrolled<Size>(rows, std::make_index_sequence<static_cast<size_t>(kNetwork<Size>.count)>());
    const V nan_end = end_that_may_be_nan(rows[0], rows[Size - 1]);
#pragma GCC unroll 16
    for (int r = 0; r < Size; ++r) rows[r] = value(rows[r], nan_end);
  }

  // ---- lanes side by side: rank r of a column lies r·lanes behind its first

  template <int Size, int Count, bool Stream>
  LIPDEPLOY_INLINE void sort_vectors(const Bits* x, Bits* y, int64_t lanes) const {
    V rows[Count][Size];
#pragma GCC unroll 16
    for (int r = 0; r < Size; ++r)
#pragma GCC unroll 8
      for (int k = 0; k < Count; ++k) rows[k][r] = load<V>(x + r * lanes + k * L);
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) sort_registers<Size>(rows[k]);
    Bits* first = call.shape.descending ? y + (Size - 1) * lanes : y;
    const int64_t step = call.shape.descending ? -lanes : lanes;
#pragma GCC unroll 16
    for (int r = 0; r < Size; ++r)
#pragma GCC unroll 8
      for (int k = 0; k < Count; ++k) store<Stream>(first + r * step + k * L, rows[k][r]);
  }

  static constexpr int64_t kShortBlock = 16384;  // bytes

  // Rows of short blocks end before the machine has seen their pattern. So the next blocks' lines are asked for, one after
  // the other as they lie in memory, as many as are used up meanwhile.
  template <int Size, bool Stream>
  LIPDEPLOY_INLINE void fetch_ahead(const Bits* x, Bits* y, int64_t block) const {
#pragma GCC unroll 16
    for (int i = 0; i < Size * kBurst<Size>; ++i) {
      if constexpr (Stream) {
        __builtin_prefetch(x + block + i * L);
      } else {
        __builtin_prefetch(x + 2 * block + i * L, 0, 2);
        if constexpr (Size == 2) __builtin_prefetch(y + block + i * L, 1);
      }
    }
  }

  template <int Size, bool Stream>
  LIPDEPLOY_INLINE int64_t sort_whole_vectors(const Bits* x, Bits* y, int64_t count) const {
    constexpr int64_t kStep = kBurst<Size> * L;
    const int64_t lanes = call.shape.lanes, block = Size * lanes;
    const bool short_block = block * static_cast<int64_t>(sizeof(Bits)) <= kShortBlock;
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) {
      if (short_block) fetch_ahead<Size, Stream>(x + i * Size, y + i * Size, block);
      sort_vectors<Size, kBurst<Size>, Stream>(x + i, y + i, lanes);
    }
    if constexpr (kStep > L)
      for (; i + L <= count; i += L) sort_vectors<Size, 1, Stream>(x + i, y + i, lanes);
    return i;
  }

  // `count` >= L columns from one block.
  template <int Size>
  __attribute__((noinline)) void side_by_side(const Bits* x, Bits* y, int64_t count) const {
    const int64_t lanes = call.shape.lanes;
    const bool stream = call.stream && aligned_for<V>(y) && lanes % L == 0;
    const int64_t done =
        stream ? sort_whole_vectors<Size, true>(x, y, count) : sort_whole_vectors<Size, false>(x, y, count);
    // The last vector may cover some columns a second time.
    if (done < count) sort_vectors<Size, 1, false>(x + count - L, y + count - L, lanes);
  }

  // ---- groups one after the other

  template <bool Stream>
  LIPDEPLOY_INLINE void sort_neighbours(const Bits* x, Bits* y) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64 && sizeof(Bits) == 4) {
      // A pair is a number of 64 bits, larger than its mirror image where the larger of the two stands above.
      const __m512i pair = (__m512i)load<V>(x), mirrored = _mm512_shuffle_epi32(pair, _MM_PERM_CDAB);
      const __m512i key = (__m512i)ordered_vector<Bits>((V)pair), other = _mm512_shuffle_epi32(key, _MM_PERM_CDAB);
      const __mmask8 swap = call.shape.descending ? _mm512_cmpgt_epi64_mask(key, other)
                                                  : _mm512_cmpgt_epi64_mask(other, key);
      const __mmask16 nan = _mm512_cmp_ps_mask((__m512)pair, (__m512)mirrored, _CMP_UNORD_Q);
      const __m512i sorted = _mm512_mask_mov_epi64(pair, swap, mirrored);
      return store<Stream>(y, (V)_mm512_mask_mov_epi32(sorted, nan, (__m512i)(V{} + call.quiet_nan)));
    }
#endif
    using S = Shuffle<V, L>;
    const V key = ordered_vector<Bits>(load<V>(x)), other = S::swap(key, typename S::All());
    const V low = smaller_of(key, other), high = larger_of(key, other);
    const V up = S::alternate(low, high, typename S::All()), down = S::alternate(high, low, typename S::All());
    store<Stream>(y, value(call.shape.descending ? down : up, end_that_may_be_nan(low, high)));
  }

  template <int Size, bool Stream>
  LIPDEPLOY_INLINE void sort_one_batch(const Bits* x, Bits* y) const {
    if constexpr (Size == 2) {
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) sort_neighbours<Stream>(x + r * L, y + r * L);
    } else {
      V rows[Size];
#pragma GCC unroll 16
      for (int r = 0; r < Size; ++r) rows[r] = load<V>(x + r * L);
      groups_to_ranks<V, L, Size>(rows);
      sort_registers<Size>(rows);
      if (call.shape.descending) {
#pragma GCC unroll 8
        for (int r = 0; r < Size / 2; ++r) {
          const V swapped = rows[r];
          rows[r] = rows[Size - 1 - r];
          rows[Size - 1 - r] = swapped;
        }
      }
      ranks_to_groups<V, L, Size>(rows);
#pragma GCC unroll 16
      for (int r = 0; r < Size; ++r) store<Stream>(y + r * L, rows[r]);
    }
  }

  // `count` >= L groups of Size.
  template <int Size>
  __attribute__((noinline)) void one_after_the_other(const Bits* x, Bits* y, int64_t count) const {
    int64_t i = 0;
    if (call.stream && aligned_for<V>(y)) {
      for (; i + L <= count; i += L) sort_one_batch<Size, true>(x + i * Size, y + i * Size);
    } else {
      for (; i + L <= count; i += L) sort_one_batch<Size, false>(x + i * Size, y + i * Size);
    }
    if (i < count) sort_one_batch<Size, false>(x + (count - L) * Size, y + (count - L) * Size);
  }

  // ---- any size and any place: a tile of L columns in memory, rank r at tile + r

  // Algorithm M for the runs of length `first_step`, ..., `last_step`, over rows [begin, end).
  static LIPDEPLOY_INLINE void merge_runs(V* tile, int64_t begin, int64_t end, int64_t first_step, int64_t last_step) {
    const int64_t size = end - begin;
    tile += begin;
    for (int64_t step = first_step; step <= last_step && step < size; step *= 2)
      for (int64_t inner = step; inner >= 1; inner /= 2)
        for (int64_t start = inner & (step - 1); start < size - inner; start += 2 * inner) {
          // Rows start ... start + inner - 1 lie in one block of 2·step, their partners in one block too.
          if (start / (2 * step) != (start + inner) / (2 * step)) continue;
          const int64_t stop = start + inner < size - inner ? start + inner : size - inner;
          for (int64_t i = start; i < stop; ++i) compare_exchange_vectors(tile[i], tile[i + inner]);
        }
  }

  // Blocks that stay in the first cache are sorted on their own before they are merged.
  static __attribute__((noinline)) void sort_tile(V* tile, int64_t size) {
    constexpr int64_t kBlock = 16384 / sizeof(V), kBase = 16;
    for (int64_t begin = 0; begin < size; begin += kBlock) {
      const int64_t end = begin + kBlock < size ? begin + kBlock : size;
      int64_t base = begin;
      for (; base + kBase <= end; base += kBase)
        sort_unrolled<kBase>(tile + base, std::make_index_sequence<static_cast<size_t>(kNetwork<kBase>.count)>());
      merge_runs(tile, base, end, 1, kBase / 2);
      merge_runs(tile, begin, end, kBase, kBlock / 2);
    }
    merge_runs(tile, 0, size, kBlock, size);
  }

  LIPDEPLOY_INLINE Bits* lane(V* tile, int64_t r, int64_t w) const { return reinterpret_cast<Bits*>(tile + r) + w; }

  // kTilesAtOnce neighbouring tiles from one block, so that a row gives more than one vector each time it is visited.
  __attribute__((noinline)) void sort_wide(int64_t column, V* tiles) const {
    const GroupSortShape& shape = call.shape;
    const int64_t size = shape.size, lanes = shape.lanes, base = shape.base(column);
    for (int64_t r = 0; r < size; ++r)
      for (int64_t t = 0; t < kTilesAtOnce; ++t)
        tiles[t * size + r] = ordered_vector<Bits>(load<V>(call.x + base + r * lanes + t * L));
    for (int64_t t = 0; t < kTilesAtOnce; ++t) sort_tile(tiles + t * size, size);
    V nan_end[kTilesAtOnce];
    for (int64_t t = 0; t < kTilesAtOnce; ++t)
      nan_end[t] = end_that_may_be_nan(tiles[t * size], tiles[(t + 1) * size - 1]);
    for (int64_t r = 0; r < size; ++r)
      for (int64_t t = 0; t < kTilesAtOnce; ++t)
        store<false>(call.y + base + shape.row(r) * lanes + t * L, value(tiles[t * size + r], nan_end[t]));
  }

  __attribute__((noinline)) void sort_in_tile(int64_t column, int64_t width, V* tile) const {
    const GroupSortShape& shape = call.shape;
    const int64_t size = shape.size, lanes = shape.lanes, base = shape.base(column);
    const bool rows = width == L && column % lanes + L <= lanes;
    const bool groups = width == L && lanes == 1 && size >= L;
    if (rows) {
      for (int64_t r = 0; r < size; ++r) tile[r] = ordered_vector<Bits>(load<V>(call.x + base + r * lanes));
    } else if (groups) {
      for (int64_t r = 0; r < size; r += L) load_square(call.x + base, r + L <= size ? r : size - L, tile);
    } else {
      load_scattered(column, width, tile);
    }
    sort_tile(tile, size);
    const V nan_end = end_that_may_be_nan(tile[0], tile[size - 1]);
    for (int64_t r = 0; r < size; ++r) tile[r] = value(tile[r], nan_end);
    if (rows) {
      for (int64_t r = 0; r < size; ++r) store<false>(call.y + base + shape.row(r) * lanes, tile[r]);
    } else if (groups) {
      for (int64_t r = 0; r < size; r += L) store_square(call.y + base, r + L <= size ? r : size - L, tile);
    } else {
      store_scattered(column, width, tile);
    }
  }

  LIPDEPLOY_INLINE void load_square(const Bits* x, int64_t r, V* tile) const {
    V square[L];
#pragma GCC unroll 16
    for (int w = 0; w < L; ++w) square[w] = load<V>(x + w * call.shape.size + r);
    groups_to_ranks<V, L, L>(square);
#pragma GCC unroll 16
    for (int w = 0; w < L; ++w) tile[r + w] = ordered_vector<Bits>(square[w]);
  }

  LIPDEPLOY_INLINE void store_square(Bits* y, int64_t r, const V* tile) const {
    const bool descending = call.shape.descending;
    const V* first = descending ? tile + call.shape.size - 1 - r : tile + r;
    V square[L];
#pragma GCC unroll 16
    for (int w = 0; w < L; ++w) square[w] = first[descending ? -w : w];
    ranks_to_groups<V, L, L>(square);
#pragma GCC unroll 16
    for (int w = 0; w < L; ++w) store<false>(y + w * call.shape.size + r, square[w]);
  }

  LIPDEPLOY_INLINE void load_scattered(int64_t column, int64_t width, V* tile) const {
    if (width < L)
      for (int64_t r = 0; r < call.shape.size; ++r) tile[r] = V{};
    for (int64_t w = 0; w < width; ++w) {
      const Bits* from = call.x + call.shape.base(column + w);
      for (int64_t r = 0; r < call.shape.size; ++r) *lane(tile, r, w) = ordered(from[r * call.shape.lanes]);
    }
  }

  LIPDEPLOY_INLINE void store_scattered(int64_t column, int64_t width, V* tile) const {
    for (int64_t w = 0; w < width; ++w) {
      Bits* to = call.y + call.shape.base(column + w);
      for (int64_t r = 0; r < call.shape.size; ++r) to[call.shape.row(r) * call.shape.lanes] = *lane(tile, r, w);
    }
  }

  // ---- which way

  template <int Size>
  LIPDEPLOY_INLINE void side_by_side_or_tiles(int64_t begin, int64_t end, V* tile) const {
    const int64_t lanes = call.shape.lanes;
    for (int64_t column = begin; column < end;) {
      const int64_t here = lanes - column % lanes, count = here < end - column ? here : end - column;
      const int64_t base = call.shape.base(column);
      if (count >= L) {
        side_by_side<Size>(call.x + base, call.y + base, count);
      } else {
        sort_in_tile(column, count, tile);
      }
      column += count;
    }
  }

  template <int Size>
  LIPDEPLOY_INLINE bool in_registers(int64_t begin, int64_t end, V* tile) const {
    if (call.shape.size != Size) return false;
    if (call.shape.lanes >= L) {
      side_by_side_or_tiles<Size>(begin, end, tile);
      return true;
    }
    if constexpr (Size > 1) {
      if (call.shape.lanes == 1 && end - begin >= L) {
        one_after_the_other<Size>(call.x + begin * Size, call.y + begin * Size, end - begin);
        return true;
      }
    }
    return false;
  }

  LIPDEPLOY_INLINE void columns(int64_t begin, int64_t end, V* tile) const {
    if (in_registers<2>(begin, end, tile) || in_registers<8>(begin, end, tile) || in_registers<4>(begin, end, tile) ||
        in_registers<1>(begin, end, tile) || in_registers<3>(begin, end, tile) || in_registers<5>(begin, end, tile) ||
        in_registers<6>(begin, end, tile) || in_registers<16>(begin, end, tile) || in_registers<7>(begin, end, tile) ||
        in_registers<9>(begin, end, tile) || in_registers<10>(begin, end, tile) || in_registers<11>(begin, end, tile) ||
        in_registers<12>(begin, end, tile) || in_registers<13>(begin, end, tile) || in_registers<14>(begin, end, tile) ||
        in_registers<15>(begin, end, tile))
      return;
    const int64_t lanes = call.shape.lanes;
    for (int64_t column = begin; column < end;) {
      int64_t width = end - column < L ? end - column : L;
      // Not across the end of a block, where a block is wide enough for whole vectors.
      if (lanes >= L && column % lanes + width > lanes) width = lanes - column % lanes;
      const int64_t here = lanes - column % lanes < end - column ? lanes - column % lanes : end - column;
      if (here >= kTilesAtOnce * L) {
        sort_wide(column, tile);
        column += kTilesAtOnce * L;
        continue;
      }
      sort_in_tile(column, width, tile);
      column += width;
    }
  }
};

template <class Bits>
void sort_columns(const SortCall<Bits>& call, int64_t begin, int64_t end, void* tile) {
  Sort<Bits>{call}.columns(begin, end, static_cast<typename Sort<Bits>::V*>(tile));
  if (call.stream) finish_streaming();
}

}  // namespace lipdeploy::LIPDEPLOY_ISA
