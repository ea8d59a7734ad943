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
    // As integers, bits order numbers >= 0 as floating point does, and all others lie below. A NaN may find any interval.
    if constexpr (sizeof(Work) == 4)
      return (K)_mm512_cvttps_epi32((__m512)smaller_of(larger_of((I)position, I{}), (I)last));
#endif
    const W above = position > 0 ? position : W{};
    return __builtin_convertvector(above < last ? above : last, K);
  }

  LIPDEPLOY_INLINE W product(W x, K interval, W rise) const {
    const W step = __builtin_convertvector(interval, W) * h;
    const W offset = x - (lower + step);
    // Infinity times a flat interval's 0 counts as 0.
#if defined(__AVX512DQ__)
    if constexpr (sizeof(Work) == 4) {
      constexpr int kInfinities = 0x18;
      const __mmask16 flat = _mm512_cmp_ps_mask((__m512)rise, (__m512)W{}, _CMP_EQ_OQ);
      const __mmask16 flat_end = _mm512_mask_fpclass_ps_mask(flat, (__m512)offset, kInfinities);
      return (W)_mm512_maskz_mul_ps(_knot_mask16(flat_end), (__m512)offset, (__m512)rise);
    }
#endif
    const I flat_end = (I)((rise == 0) & ((offset > kLargest<Work>) | (offset < -kLargest<Work>)));
    return (W)(~flat_end & (I)(offset * rise));
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

  const SplineCall<Element>& call;
  S vector;

  // An interval's value at its left end, and what it gains until the right one.
  struct Ends {
    W left, rise;
  };

  // ---- three steps for each vector: interval, product, result

  // The steps of three neighbouring vectors run side by side: one after the other, their latencies would fill the
  // machine's window. A Lookup finds the ends of intervals; it is told of each vector's before it is asked.
  template <bool Stream, class Lookup>
  LIPDEPLOY_INLINE void in_steps(const Lookup& given, const Bits* x, Bits* y, int64_t vectors) const {
    const S v = vector;
    Lookup lookup = given;
    const auto interval_of = [&](int64_t i) __attribute__((always_inline)) {
      const K interval = v.interval(S::widen(load<B>(x + i * L)));
      lookup.note(interval);
      return interval;
    };
    const auto product_of = [&](int64_t i, K interval) __attribute__((always_inline)) {
      const Ends ends = lookup.ends(interval);
      return Ends{ends.left, v.product(S::widen(load<B>(x + i * L)), interval, ends.rise)};
    };
    const auto finish = [&](int64_t i, Ends e) __attribute__((always_inline)) {
      store<Stream>(y + i * L, S::narrow(e.left + e.rise / v.h));
    };
    Ends ends = product_of(0, interval_of(0));
    if (vectors > 1) {
      K interval = interval_of(1);
      for (int64_t i = 2; i < vectors; ++i) {
        finish(i - 2, ends);
        ends = product_of(i - 1, interval);
        interval = interval_of(i);
      }
      finish(vectors - 2, ends);
      ends = product_of(vectors - 1, interval);
    }
    finish(vectors - 1, ends);
  }

  template <class Lookup>
  LIPDEPLOY_INLINE void apply(const Lookup& lookup, const Bits* x, Bits* y, int64_t count) const {
    constexpr bool kMayStream = sizeof(B) >= 16;
    if (count < L) {
      Bits few[L] = {};
      __builtin_memcpy(few, x, count * sizeof(Bits));
      in_steps<false>(lookup, few, few, 1);
      __builtin_memcpy(y, few, count * sizeof(Bits));
      return;
    }
    if (kMayStream && call.stream && aligned_for<B>(y)) {
      in_steps<kMayStream>(lookup, x, y, count / L);
    } else {
      in_steps<false>(lookup, x, y, count / L);
    }
    // The last vector covers some elements a second time.
    if (count % L != 0) in_steps<false>(lookup.from(count - L), x + count - L, y + count - L, 1);
  }

  // ---- one row of coefficients for a long stretch, in registers

  template <int Count>
  struct InRegisters {
    TableInRegisters<Element, Count> left, rise;

    LIPDEPLOY_INLINE void note(K) const {}
    LIPDEPLOY_INLINE Ends ends(K interval) const {
      const auto index = __builtin_convertvector(interval, typename S::I);
      return {left.at(index), rise.at(index)};
    }
    LIPDEPLOY_INLINE const InRegisters& from(int64_t) const { return *this; }
  };

  template <int Count>
  __attribute__((noinline)) void permute(const Work* values, const Bits* x, Bits* y, int64_t count) const {
    const int64_t intervals = call.shape.knots - 1;
    InRegisters<Count> lookup{};
    alignas(64) Work table[2][Count * L] = {};
    for (int64_t k = 0; k < intervals; ++k) {
      table[0][k] = values[k];
      table[1][k] = values[k + 1] - values[k];
    }
    for (int i = 0; i < Count; ++i) {
      lookup.left.entries[i] = load<W>(table[0] + i * L);
      lookup.rise.entries[i] = load<W>(table[1] + i * L);
    }
    apply(lookup, x, y, count);
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

  struct Places {
    alignas(64) int32_t at[L];
  };

  template <bool Starts>
  struct InMemory {
    const Work* values;
    const int32_t* starts;  // where the row of each element of a period starts; not read without Starts
    int64_t period, at;     // `at`: the next element's place in the period
    Places places;          // of the vector that was noted last

    LIPDEPLOY_INLINE void note(K interval) {
      if constexpr (Starts) {
        interval += load<K>(starts + at);
        at += L;
        at -= at < period ? 0 : period;
      }
      store<false>(places.at, interval);
    }
    LIPDEPLOY_INLINE Ends ends(K) const { return fetch(std::make_index_sequence<sizeof(Work) == 4 ? L / 2 : L>()); }
    LIPDEPLOY_INLINE InMemory from(int64_t i) const {
      return {values, starts, period, Starts ? (at + i) % period : 0, {}};
    }

    template <size_t... Lane>
    LIPDEPLOY_INLINE Ends fetch(std::index_sequence<Lane...>) const {
      using Pick = Shuffle<W, L>;
      W first, second;
      if constexpr (sizeof(Work) == 4) {
        using Pairs = Vector<double, L / 2>;
        first = (W)Pairs{both_ends(places.at[Lane])...};
        second = (W)Pairs{both_ends(places.at[L / 2 + Lane])...};
      } else {
        alignas(64) Work fetched[2 * L];
        (__builtin_memcpy(fetched + 2 * Lane, values + places.at[Lane], 2 * sizeof(Work)), ...);
        first = load<W>(fetched);
        second = load<W>(fetched + L);
      }
      const W left = Pick::even(first, second, typename Pick::All());
      return {left, Pick::odd(first, second, typename Pick::All()) - left};
    }

    // Moved, never computed with.
    LIPDEPLOY_INLINE double both_ends(int32_t place) const {
      double ends;
      __builtin_memcpy(&ends, values + place, sizeof(ends));
      return ends;
    }
  };

  template <bool Starts>
  __attribute__((noinline)) void fetch(const Work* values, int64_t at, const Bits* x, Bits* y, int64_t count) const {
    apply(InMemory<Starts>{values, call.starts, call.period, at, {}}, x, y, count);
  }

  LIPDEPLOY_INLINE void elements(int64_t begin, int64_t end) const {
    const LinearSplineShape& shape = call.shape;
    if (call.starts != nullptr)
      return fetch<true>(call.values, begin % call.period, call.x + begin, call.y + begin, end - begin);
    const bool one_row = shape.rows == 1;
    const int64_t stretch = one_row ? shape.elements() : shape.inner;
    for (int64_t i = begin; i < end;) {
      const int64_t here = stretch - i % stretch, count = here < end - i ? here : end - i;
      const int64_t channel = one_row ? 0 : i / shape.inner % shape.channels;
      const Work* values = call.values + channel * shape.knots;
      if (!permuted(values, call.x + i, call.y + i, count)) fetch<false>(values, 0, call.x + i, call.y + i, count);
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
