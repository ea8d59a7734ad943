// One vector through the pinned formula of lipdeploy/linear_spline.h, step by step, the same rounding at each.
#pragma once

#include "numbers.h"

namespace lipdeploy::LIPDEPLOY_ISA {

template <class Element>
struct SplineVector : Numbers<Element> {
  using Base = Numbers<Element>;
  using Base::L;
  using typename Base::B;
  using typename Base::Bits;
  using typename Base::I;
  using typename Base::Integer;
  using typename Base::K;
  using typename Base::W;
  using typename Base::Work;

  W lower, h, last;
  // For intervals by products in place of a division: 1/h in two parts, and a number in the middle of the last interval.
  W reciprocal, rest, top;
  bool products;

  SplineVector(Work lower_end, Work spacing, int64_t knots, bool many)
      : lower(W{} + lower_end), h(W{} + spacing), last(W{} + static_cast<Work>(knots - 2)) {
    reciprocal = 1 / h;
    rest = fused(-reciprocal, h, W{} + 1) / h;
    top = (last + Work(0.5)) * h;
    products = many && kFused && knots <= 65536 && spacing > Work(0x1p-60) && spacing < Work(0x1p60) && products_suffice(knots);
  }

#if defined(__FMA__)
  static constexpr bool kFused = true;
  // a·b + c, rounded once.
  static LIPDEPLOY_INLINE W fused(W a, W b, W c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Work) == 4) return (W)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    if constexpr (sizeof(Work) == 8) return (W)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
    if constexpr (sizeof(Work) == 4) return (W)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    if constexpr (sizeof(Work) == 8) return (W)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
  }
#else
  static constexpr bool kFused = false;
  static LIPDEPLOY_INLINE W fused(W a, W b, W c) { return a * b + c; }  // not called for results
#endif

  // Nearly always fl(distance/h): before its rounding it is off by less than 8u² of itself, u the unit roundoff.
  LIPDEPLOY_INLINE W quotient(W distance) const { return fused(distance, reciprocal, distance * rest); }

  // Whether `quotient` has the integer part of fl(d/h) for every d in [0, top]. It can only differ where d/h lies within
  // 8u² of the number below which fl(d/h) leaves the integer m: m less half a unit in the last place below m, times h.
  // The d nearest to that, in one rounding, is the only one so near; each m < knots - 1 has one, and all are tried.
  bool products_suffice(int64_t knots) const {
    constexpr Work kUnit = sizeof(Work) == 4 ? Work(0x1p-24) : Work(0x1p-53);
    I wrong{};
    for (int64_t m = 1; m < knots - 1; m += L) {
      W integer;
      for (int i = 0; i < L; ++i) integer[i] = static_cast<Work>(m + i < knots - 1 ? m + i : 1);
      const W power = (W)(((I)integer - 1) & static_cast<Integer>(std::conditional<sizeof(Work) == 8, Float64, Float32>::type::kInfinity));
      const W nearest = fused(integer, h, -(power * kUnit * h));
      wrong |= (I)(quotient(nearest) >= integer) ^ (I)(nearest / h >= integer);
    }
    for (int i = 0; i < L; ++i)
      if (wrong[i] != 0) return false;
    return true;
  }

  // The number of the interval, in three steps: this, `position`, `truncated`. Clamped while floating; the comparison sends
  // NaN to 0.
  LIPDEPLOY_INLINE W inside(W x) const {
    const W distance = x - lower;
    if (!products) return distance;
    // As integers, bits order numbers >= 0 as floating point does, and all others lie below. A NaN may find any.
    if constexpr (sizeof(Work) == 4) return (W)smaller_of(larger_of((I)distance, I{}), (I)top);
    const W above = distance > 0 ? distance : W{};
    return above < top ? above : top;
  }

  LIPDEPLOY_INLINE W position(W inside) const {
    if (products) return quotient(inside);
    const W position = inside / h;
    const W above = position > 0 ? position : W{};
    return above < last ? above : last;
  }

  // Truncation is floor for what is left, which is >= 0.
  static LIPDEPLOY_INLINE K truncated(W position) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Work) == 4) return (K)_mm512_cvttps_epi32((__m512)position);
#endif
    return __builtin_convertvector(position, K);
  }

  LIPDEPLOY_INLINE W offset(W x, K interval) const {
    const W step = __builtin_convertvector(interval, W) * h;
    return x - (lower + step);
  }

  // Infinity times a flat interval's 0 counts as 0. Only the first and the last interval reach to infinity.
  template <bool FlatEnds>
  static LIPDEPLOY_INLINE W product(W offset, W rise) {
    if constexpr (!FlatEnds) return offset * rise;
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

}  // namespace lipdeploy::LIPDEPLOY_ISA
