// LinearSpline: a piecewise-linear function for each channel, by its values at uniform knots.
//
// types      float16, bfloat16 (computed in float32, rounded once), float32, float64
// valid      any input; 2 to 2^24 knots; knot_spacing h finite and > 0, lower finite
// formula    k = clamp(floor((x - lower)/h), 0, K-2);  t = lower + k*h;  y = c_k + ((x - t)*(c_{k+1} - c_k))/h,
//            every step rounded, never fused: compile without contraction and without fast-math
// error      |y - s(x)| <= v*max|c| + A*(gamma_5*(|x| + R) + gamma_6*R) + tiny*(1 + 1/h), where v is the unit roundoff,
//            R = |lower| + (K-1)*h, A = max|slope|, gamma_n = n*v/(1 - n*v), tiny the smallest subnormal;
//            float16 and bfloat16 add the rounding of the result
// NaN        canonical quiet NaN
// +-Inf      +-Inf times the sign of the end interval's rise; the end coefficient where the rise is 0
// -0, +0     the formula's own signs of zero
//
// Host and device; no ONNX Runtime type.
#pragma once

#include "lipdeploy/element.h"

namespace lipdeploy {

constexpr int64_t kMostKnots = int64_t{1} << 24;  // k stays exact in float32

struct LinearSplineShape {
  int64_t outer, channels, inner, rows, knots;
  float lower, knot_spacing;

  LIPDEPLOY_INLINE int64_t elements() const { return outer * channels * inner; }
};

inline bool linear_spline_shape_is_valid(const LinearSplineShape& s) {
  const bool sizes = s.outer >= 0 && s.channels >= 0 && s.inner >= 0 && s.knots >= 2 && s.knots <= kMostKnots;
  const bool finite = s.lower - s.lower == 0 && s.knot_spacing - s.knot_spacing == 0;
  return sizes && finite && s.knot_spacing > 0 && (s.rows == 1 || s.rows == s.channels);
}

// The formula on wide numbers; at(k) is coefficient k.
template <class Work, class Coefficients>
LIPDEPLOY_INLINE Work spline_value(Work x, const Coefficients& at, int32_t last_interval, Work lower, Work h) {
  const Work position = (x - lower) / h;
  // Clamped while floating; the comparison sends NaN to 0. Truncation is floor for what is left, which is >= 0.
  const Work upper = static_cast<Work>(last_interval);
  const Work above = position > Work(0) ? position : Work(0);
  const int32_t interval = static_cast<int32_t>(above < upper ? above : upper);
  const Work left = at(interval), right = at(interval + 1);
  const Work knot_step = static_cast<Work>(interval) * h;
  const Work knot = lower + knot_step;
  const Work rise = right - left;
  const Work offset = x - knot;
  const bool infinite = (offset > kLargest<Work>) | (offset < -kLargest<Work>);
  const Work product = (infinite & (rise == Work(0))) ? Work(0) : offset * rise;
  const Work quotient = product / h;
  return left + quotient;
}

// The coefficients of one channel as they are stored.
template <class Element>
struct StoredRow {
  using Offset = int64_t;
  const typename Element::Bits* coefficients;

  LIPDEPLOY_INLINE typename Element::Work operator()(int32_t k) const { return Element::widen(coefficients[k]); }
};

template <class Element>
LIPDEPLOY_INLINE typename Element::Bits linear_spline(typename Element::Bits input,
                                                      const typename Element::Bits* coefficients, int32_t last_interval,
                                                      typename Element::Work lower, typename Element::Work h) {
  const StoredRow<Element> row{coefficients};
  return Element::narrow(spline_value(Element::widen(input), row, last_interval, lower, h));
}

}  // namespace lipdeploy
