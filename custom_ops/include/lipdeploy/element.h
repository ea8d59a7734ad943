// The four element types: their bits, the type they compute in, and conversions between the two: by the device's own
// instructions there (IEEE 754, one or two of them), by integer arithmetic on hosts, which need not have any.
// Host and device; no ONNX Runtime type may enter here.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define LIPDEPLOY_INLINE __host__ __device__ __forceinline__
#else
#define LIPDEPLOY_INLINE inline __attribute__((always_inline))
#endif

namespace lipdeploy {

template <class To, class From>
LIPDEPLOY_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// Largest finite value, as a constant that device code may use.
template <class Number>
constexpr Number kLargest = std::numeric_limits<Number>::max();

// Bits: signed integer of the same size. Work: the type in which arithmetic is done.
// widen is exact, narrow_number rounds to nearest even what is no NaN, narrow also makes every NaN the canonical quiet one.
struct Float32 {
  using Bits = int32_t;
  using Work = float;
  static constexpr Bits kInfinity = 0x7f800000, kQuietNaN = 0x7fc00000;
  static LIPDEPLOY_INLINE float widen(Bits bits) { return bits_as<float>(bits); }
  static LIPDEPLOY_INLINE Bits narrow_number(float value) { return bits_as<Bits>(value); }
  static LIPDEPLOY_INLINE Bits narrow(float value) { return value == value ? narrow_number(value) : kQuietNaN; }
};

struct Float64 {
  using Bits = int64_t;
  using Work = double;
  static constexpr Bits kInfinity = 0x7ff0000000000000, kQuietNaN = 0x7ff8000000000000;
  static LIPDEPLOY_INLINE double widen(Bits bits) { return bits_as<double>(bits); }
  static LIPDEPLOY_INLINE Bits narrow_number(double value) { return bits_as<Bits>(value); }
  static LIPDEPLOY_INLINE Bits narrow(double value) { return value == value ? narrow_number(value) : kQuietNaN; }
};

struct BFloat16 {
  using Bits = int16_t;
  using Work = float;
  static constexpr Bits kInfinity = 0x7f80, kQuietNaN = 0x7fc0;
  static LIPDEPLOY_INLINE float widen(Bits bits) {
    return bits_as<float>(static_cast<uint32_t>(static_cast<uint16_t>(bits)) << 16);
  }
  static LIPDEPLOY_INLINE Bits narrow_number(float value) {
#if defined(__CUDA_ARCH__)
    Bits rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
    return rounded;
#else
    const uint32_t bits = bits_as<uint32_t>(value);
    return static_cast<Bits>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
  }
  static LIPDEPLOY_INLINE Bits narrow(float value) { return value == value ? narrow_number(value) : kQuietNaN; }
};

struct Float16 {
  using Bits = int16_t;
  using Work = float;
  static constexpr Bits kInfinity = 0x7c00, kQuietNaN = 0x7e00;
  static LIPDEPLOY_INLINE float widen(Bits bits) {
#if defined(__CUDA_ARCH__)
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
    return wide;
#else
    const uint32_t half = static_cast<uint16_t>(bits), magnitude = half & 0x7fff, sign = (half & 0x8000) << 16;
    const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24, exact
    const uint32_t exponent_shift = magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u;
    const uint32_t normal = (magnitude << 13) + exponent_shift;
    return bits_as<float>(sign | (magnitude < 0x0400 ? bits_as<uint32_t>(subnormal) : normal));
#endif
  }
  static LIPDEPLOY_INLINE Bits narrow_number(float value) {
#if defined(__CUDA_ARCH__)
    Bits rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
    return rounded;
#else
    const uint32_t bits = bits_as<uint32_t>(value), magnitude = bits & 0x7fffffff;
    const uint32_t sign = (bits >> 16) & 0x8000;
    // Adding 1/2 moves the last bit of a half subnormal to the last bit of the float: the addition rounds correctly.
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000u) >> 13;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    return static_cast<Bits>(sign | (magnitude >= 0x477ff000u ? 0x7c00u : finite));
#endif
  }
  static LIPDEPLOY_INLINE Bits narrow(float value) { return value == value ? narrow_number(value) : kQuietNaN; }
};

}  // namespace lipdeploy
