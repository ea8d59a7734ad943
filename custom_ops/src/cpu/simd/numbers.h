// Vectors of the four element types: as stored, as computed, and the exact way from one to the other and back.
#pragma once

#include "vector.h"

namespace lipdeploy::LIPDEPLOY_ISA {

template <class Element>
struct Numbers {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;
  using Integer = typename std::conditional<sizeof(Work) == 8, int64_t, int32_t>::type;
  static constexpr int L = LIPDEPLOY_VECTOR_BYTES / sizeof(Work);
  using B = Vector<Bits, L>;      // as stored
  using W = Vector<Work, L>;      // as computed
  using I = Vector<Integer, L>;   // bits of W
  using K = Vector<int32_t, L>;   // numbers of intervals

  static LIPDEPLOY_INLINE W widen(B bits) {
    if constexpr (sizeof(Bits) == sizeof(Work)) {
      return (W)bits;
    } else if constexpr (Element::kInfinity == BFloat16::kInfinity) {
      return (W)(__builtin_convertvector(bits, I) << 16);
    } else {
#if defined(__AVX512F__)
      return (W)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
      return (W)_mm256_cvtph_ps((__m128i)bits);
#else
      W w;
      for (int i = 0; i < L; ++i) w[i] = Element::widen(bits[i]);
      return w;
#endif
    }
  }

  static LIPDEPLOY_INLINE B narrow(W w) {
    if constexpr (sizeof(Bits) == sizeof(Work)) {
#if defined(__AVX512F__)
      // Per class of number, in place of a comparison and a choice: a NaN becomes the canonical one, else `w`.
      constexpr int kAllButNaN = 0x11111100;
      if constexpr (sizeof(Work) == 4)
        return (B)_mm512_fixupimm_ps((__m512)(I{} + static_cast<Integer>(Element::kQuietNaN)), (__m512)w,
                                     _mm512_set1_epi32(kAllButNaN), 0);
#endif
      return (B)(w == w ? (I)w : I{} + static_cast<Integer>(Element::kQuietNaN));
    } else if constexpr (Element::kInfinity == BFloat16::kInfinity) {
      // Unsigned, as in element.h: the carry into the sign of the largest NaNs is then no overflow.
      using U = Vector<uint32_t, L>;
      const U bits = (U)w;
      const I rounded = (I)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
      return __builtin_convertvector(w == w ? rounded : I{} + static_cast<Integer>(Element::kQuietNaN), B);
    } else {
#if defined(__F16C__)
      const I canonical = w == w ? (I)w : I{} + static_cast<Integer>(Float32::kQuietNaN);
#if defined(__AVX512F__)
      return (B)_mm512_cvtps_ph((__m512)canonical, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
      return (B)_mm256_cvtps_ph((__m256)canonical, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
#else
      B bits;
      for (int i = 0; i < L; ++i) bits[i] = Element::narrow(w[i]);
      return bits;
#endif
    }
  }
};

}  // namespace lipdeploy::LIPDEPLOY_ISA
