// Householder: reflect each pair of channels (a, b) where it lies on the far side of a line.
//
// types      float16, bfloat16 (computed in float32, rounded once), float32, float64
// valid      any input, an even number of channels; s = sin(theta/2) and c = cos(theta/2) of each pair are stored
// formula    m = max(0, a*s - b*c);  a' = a - s*(m + m);  b' = b + c*(m + m)
//            every step rounded, never fused: compile without contraction and without fast-math
// error      |a' - exact| <= gamma_4*(|a| + 2|s|*(|a*s| + |b*c|)) and alike for b', gamma_4 = 4v/(1 - 4v) with v the unit
//            roundoff, plus (4 + 8*max(|s|, |c|)) smallest normal numbers; float16 and bfloat16 add the rounding of the result
// NaN        in a pair makes both the canonical quiet NaN
// +-Inf      as the formula gives: NaN where it meets Inf - Inf or Inf*0
// -0, +0     the formula's own signs of zero; m = 0 is +0
//
// Host and device; no ONNX Runtime type.
#pragma once

#include "lipdeploy/element.h"

namespace lipdeploy {

// Pair q of outer*pairs*inner, inner counting fastest.
struct HouseholderShape {
  int64_t outer, pairs, inner;
  bool strided;

  LIPDEPLOY_INLINE int64_t count() const { return outer * pairs * inner; }
  LIPDEPLOY_INLINE int64_t pair(int64_t q) const { return q / inner % pairs; }
  // How far b lies behind its a; as many pairs lie side by side.
  LIPDEPLOY_INLINE int64_t gap() const { return strided ? pairs * inner : inner; }
  LIPDEPLOY_INLINE int64_t first(int64_t q) const { return q + q / gap() * gap(); }
};

inline bool householder_shape(int64_t outer, int64_t channels, int64_t inner, int64_t layout, HouseholderShape* shape) {
  if (outer < 0 || channels < 0 || channels % 2 != 0 || inner < 0 || (layout != 0 && layout != 1)) return false;
  *shape = {outer, channels / 2, inner, layout == 1};
  return true;
}

template <class Element>
LIPDEPLOY_INLINE void reflect(typename Element::Bits& a, typename Element::Bits& b, typename Element::Bits sine,
                              typename Element::Bits cosine) {
  using Work = typename Element::Work;
  const Work x = Element::widen(a), y = Element::widen(b), s = Element::widen(sine), c = Element::widen(cosine);
  const Work far = x * s, near = y * c;
  const Work beyond = far - near;
  const Work m = beyond <= Work(0) ? Work(0) : beyond;  // a NaN stays
  const Work twice = m + m;
  const Work down = s * twice, up = c * twice;
  a = Element::narrow(x - down);
  b = Element::narrow(y + up);
}

}  // namespace lipdeploy
