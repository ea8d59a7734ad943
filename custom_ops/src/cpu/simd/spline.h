// LinearSpline on vectors: the pinned formula of lipdeploy/linear_spline.h step by step, the same rounding at each.
#pragma once

#include "../dispatch.h"
#include "numbers.h"

namespace lipdeploy::LIPDEPLOY_ISA {

// Tables of up to this many vectors are looked up by permuting registers.
#if defined(__GNUC__) && !defined(__clang__) && LIPDEPLOY_VECTOR_BYTES > 16
template <class Work>
constexpr int kMostTableVectors = LIPDEPLOY_VECTOR_BYTES == 64 ? 4 : sizeof(Work) == 4 ? 2 : 0;
#else
template <class Work>
constexpr int kMostTableVectors = 0;
#endif

template <class Element>
struct SplineVector : Numbers<Element> {
  using Base = Numbers<Element>;
  using Base::L;
  using typename Base::B;
  using typename Base::Bits;
  using typename Base::I;
  using typename Base::K;
  using typename Base::W;
  using typename Base::Work;

  W lower, h, last;

  // Clamped while floating; the comparison sends NaN to 0. Truncation is floor for what is left, which is >= 0.
  LIPDEPLOY_INLINE K interval(W x) const {
    const W position = (x - lower) / h;
#if defined(__AVX512F__)
    // Of a NaN and a number, these two return the second.
    if constexpr (sizeof(Work) == 4)
      return (K)_mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps((__m512)position, (__m512)W{}), (__m512)last));
#endif
    const W above = position > 0 ? position : W{};
    return __builtin_convertvector(above < last ? above : last, K);
  }

  LIPDEPLOY_INLINE W value(W x, K interval, W left, W rise) const {
    const W step = __builtin_convertvector(interval, W) * h;
    const W offset = x - (lower + step);
    // Infinity times a flat interval's 0 counts as 0.
#if defined(__AVX512DQ__)
    if constexpr (sizeof(Work) == 4) {
      constexpr int kInfinities = 0x18;
      const __mmask16 flat = _mm512_cmp_ps_mask((__m512)rise, (__m512)W{}, _CMP_EQ_OQ);
      const __mmask16 flat_end = _mm512_mask_fpclass_ps_mask(flat, (__m512)offset, kInfinities);
      return left + (W)_mm512_maskz_mul_ps(_knot_mask16(flat_end), (__m512)offset, (__m512)rise) / h;
    }
#endif
    const I flat_end = (I)((rise == 0) & ((offset > kLargest<Work>) | (offset < -kLargest<Work>)));
    const W product = (W)(~flat_end & (I)(offset * rise));
    return left + product / h;
  }
};

// A table of Count vectors in registers.
template <class Element, int Count>
struct TableInRegisters {
  using S = SplineVector<Element>;
  typename S::W entries[Count];

  LIPDEPLOY_INLINE typename S::W at(typename S::I index) const {
    if constexpr (Count == 1) {
      return __builtin_shuffle(entries[0], index);
    } else if constexpr (Count == 2) {
      return __builtin_shuffle(entries[0], entries[1], index);
    } else {
      const auto low = __builtin_shuffle(entries[0], entries[1], index);
      const auto high = __builtin_shuffle(entries[2], entries[3], index);
      return index < 2 * S::L ? low : high;
    }
  }
};

template <class Element>
struct Spline {
  using S = SplineVector<Element>;
  using Bits = typename S::Bits;
  using Work = typename S::Work;
  using B = typename S::B;
  using W = typename S::W;
  using K = typename S::K;
  static constexpr int L = S::L;
  static constexpr int kChunk = 128;

  const SplineCall<Element>& call;
  S vector;

  // ---- one row of coefficients for a long stretch

  template <int Count, bool Stream>
  LIPDEPLOY_INLINE void permute_one(const TableInRegisters<Element, Count>& left,
                                    const TableInRegisters<Element, Count>& rise, const Bits* x, Bits* y) const {
    const W wide = S::widen(load<B>(x));
    const K interval = vector.interval(wide);
    const auto index = __builtin_convertvector(interval, typename S::I);
    store<Stream>(y, S::narrow(vector.value(wide, interval, left.at(index), rise.at(index))));
  }

  template <int Count>
  __attribute__((noinline)) void permute(const Work* values, const Bits* x, Bits* y, int64_t count) const {
    const int64_t intervals = call.shape.knots - 1;
    TableInRegisters<Element, Count> left{}, rise{};
    alignas(64) Work table[2][Count * L] = {};
    for (int64_t k = 0; k < intervals; ++k) {
      table[0][k] = values[k];
      table[1][k] = values[k + 1] - values[k];
    }
    for (int i = 0; i < Count; ++i) {
      left.entries[i] = load<W>(table[0] + i * L);
      rise.entries[i] = load<W>(table[1] + i * L);
    }
    int64_t i = 0;
    if (sizeof(B) >= 16 && call.stream && aligned_for<B>(y)) {
      for (; i + L <= count; i += L) permute_one<Count, (sizeof(B) >= 16)>(left, rise, x + i, y + i);
    } else {
      for (; i + L <= count; i += L) permute_one<Count, false>(left, rise, x + i, y + i);
    }
    if (i == count) return;
    if (count >= L) return permute_one<Count, false>(left, rise, x + count - L, y + count - L);
    Bits few[L] = {};
    __builtin_memcpy(few, x, count * sizeof(Bits));
    permute_one<Count, false>(left, rise, few, few);
    __builtin_memcpy(y, few, count * sizeof(Bits));
  }

  LIPDEPLOY_INLINE bool permuted(const Work* values, const Bits* x, Bits* y, int64_t count) const {
    const int64_t intervals = call.shape.knots - 1, vectors = (intervals - 1) / L + 1;
    // Filling the registers must pay.
    if (count < 2 * intervals) return false;
    constexpr int kMost = kMostTableVectors<Work>;
    if constexpr (kMost >= 1) {
      if (vectors == 1) return permute<1>(values, x, y, count), true;
    }
    if constexpr (kMost >= 2) {
      if (vectors == 2) return permute<2>(values, x, y, count), true;
    }
    if constexpr (kMost >= 4) {
      if (vectors <= 4) return permute<4>(values, x, y, count), true;
    }
    return false;
  }

  // ---- any table: the two ends of an interval lie side by side and are fetched as one

  template <bool Stream>
  LIPDEPLOY_INLINE void fetch_chunk(const Work* values, const int32_t* starts, const Bits* x, Bits* y, int count) const {
    alignas(64) int32_t intervals[kChunk], places[kChunk];
    alignas(64) Work fetched[2 * kChunk];
    for (int i = 0; i < count; i += L) {
      const K interval = vector.interval(S::widen(load<B>(x + i)));
      store<false>(intervals + i, interval);
      store<false>(places + i, starts == nullptr ? interval : interval + load<K>(starts + i));
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      __builtin_memcpy(fetched + 2 * i, values + places[i], 2 * sizeof(Work));
    using Pick = Shuffle<W, L>;
    for (int i = 0; i < count; i += L) {
      const W first = load<W>(fetched + 2 * i), second = load<W>(fetched + 2 * i + L);
      const W left = Pick::even(first, second, typename Pick::All());
      const W rise = Pick::odd(first, second, typename Pick::All()) - left;
      const W wide = S::widen(load<B>(x + i));
      store<Stream>(y + i, S::narrow(vector.value(wide, load<K>(intervals + i), left, rise)));
    }
  }

  __attribute__((noinline)) void fetch(const Work* values, const int32_t* starts, const Bits* x, Bits* y,
                                       int64_t count) const {
    constexpr bool kMayStream = sizeof(B) >= 16;
    int64_t i = 0;
    if (kMayStream && call.stream && aligned_for<B>(y)) {
      for (; i + kChunk <= count; i += kChunk)
        fetch_chunk<kMayStream>(values, starts == nullptr ? nullptr : starts + i, x + i, y + i, kChunk);
    } else {
      for (; i + kChunk <= count; i += kChunk)
        fetch_chunk<false>(values, starts == nullptr ? nullptr : starts + i, x + i, y + i, kChunk);
    }
    if (i == count) return;
    const int rest = static_cast<int>(count - i), whole = (rest + L - 1) / L * L;
    Bits some[kChunk] = {};
    int32_t some_starts[kChunk] = {};
    __builtin_memcpy(some, x + i, rest * sizeof(Bits));
    if (starts != nullptr) __builtin_memcpy(some_starts, starts + i, rest * sizeof(int32_t));
    fetch_chunk<false>(values, starts == nullptr ? nullptr : some_starts, some, some, whole);
    __builtin_memcpy(y + i, some, rest * sizeof(Bits));
  }

  LIPDEPLOY_INLINE void elements(int64_t begin, int64_t end) const {
    const LinearSplineShape& shape = call.shape;
    const bool one_row = shape.rows == 1, short_stretches = !one_row && call.starts != nullptr;
    const int64_t stretch = one_row ? shape.elements() : short_stretches ? call.period : shape.inner;
    for (int64_t i = begin; i < end;) {
      const int64_t here = stretch - i % stretch, count = here < end - i ? here : end - i;
      const int64_t channel = one_row || short_stretches ? 0 : i / shape.inner % shape.channels;
      const Work* values = call.values + channel * shape.knots;
      if (short_stretches) {
        fetch(values, call.starts + i % stretch, call.x + i, call.y + i, count);
      } else if (!permuted(values, call.x + i, call.y + i, count)) {
        fetch(values, nullptr, call.x + i, call.y + i, count);
      }
      i += count;
    }
  }
};

template <class Element>
void spline_elements(const SplineCall<Element>& call, int64_t begin, int64_t end) {
  using W = typename SplineVector<Element>::W;
  using Work = typename Element::Work;
  const SplineVector<Element> vector{{},
                                     W{} + static_cast<Work>(call.shape.lower),
                                     W{} + static_cast<Work>(call.shape.knot_spacing),
                                     W{} + static_cast<Work>(call.shape.knots - 2)};
  Spline<Element>{call, vector}.elements(begin, end);
  if (call.stream) finish_streaming();
}

}  // namespace lipdeploy::LIPDEPLOY_ISA
