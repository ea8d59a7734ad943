// What the sorting kernels compare: the bits of a number, or those of two 16-bit numbers in one register, which belong to
// different groups and are compared at once (one instruction from sm_90 on).
#pragma once

#include "launch.h"
#include "lipdeploy/group_sort.h"

namespace lipdeploy {

struct Pair {
  uint32_t both;

  static __device__ __forceinline__ Pair of(int32_t low, int32_t high) {
    return {(static_cast<uint32_t>(low) & 0xffff) | static_cast<uint32_t>(high) << 16};
  }
};

template <class Key>
struct Limits {
  Key infinity, quiet_nan;
};

// The key of groups of such numbers, and of how many groups.
template <class Bits>
struct KeyOfNumbers {
  using Key = Bits;
};
template <>
struct KeyOfNumbers<int16_t> {
  using Key = Pair;
};
template <class Bits>
using KeyOf = typename KeyOfNumbers<Bits>::Key;

template <class Key>
constexpr int kGroups = 1;
template <>
constexpr int kGroups<Pair> = 2;

template <class Key, class Bits>
Limits<Key> limits_of(Bits infinity, Bits quiet_nan) {
  if constexpr (kGroups<Key> == 2) {
    return {Pair::of(infinity, infinity), Pair::of(quiet_nan, quiet_nan)};
  } else {
    return {infinity, quiet_nan};
  }
}

// All ones in every half whose sign bit is set.
__device__ __forceinline__ uint32_t spread_signs(uint32_t pair) {
#if defined(__CUDA_ARCH__)
  uint32_t spread;
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(spread) : "r"(pair));
  return spread;
#else
  return ((pair >> 15) & 0x00010001) * 0xffff;
#endif
}

// As group_sort.h has them for single numbers.
__device__ __forceinline__ Pair ordered(Pair pair) {
  return {pair.both ^ (spread_signs(pair.both) & 0x7fff7fff)};
}

__device__ __forceinline__ void compare_exchange(Pair& smaller, Pair& larger) {
  const uint32_t a = smaller.both, b = larger.both;
  smaller.both = __vmins2(a, b);
  larger.both = __vmaxs2(a, b);
}

// What was the largest is the smallest.
template <class Bits>
__device__ __forceinline__ Bits flipped(Bits key, bool flip) {
  return static_cast<Bits>(key ^ -static_cast<Bits>(flip));
}
__device__ __forceinline__ Pair flipped(Pair pair, bool flip) { return {pair.both ^ (0 - uint32_t{flip})}; }

// Whether a group has no NaN, from the ends of its sorted keys: NaNs lie beyond both infinities.
template <class Bits>
__device__ __forceinline__ bool all_numbers(Bits lowest, Bits highest, Bits infinity) {
  return (lowest >= static_cast<Bits>(~infinity)) & (highest <= infinity);
}

// Of either half, as ones or zeros. The larger of `highest` and -1-`lowest` is not negative and at most 2^15 - 1: taken
// from infinity + 2^15 it leaves the 15th bit where it is at most infinity, and borrows nothing from the other half.
__device__ __forceinline__ uint32_t all_numbers(Pair lowest, Pair highest, Pair infinity) {
  return spread_signs((infinity.both | 0x80008000) - __vmaxs2(highest.both, ~lowest.both));
}

template <class Bits>
__device__ __forceinline__ Bits chosen(bool first, Bits a, Bits b) {
  return first ? a : b;
}

__device__ __forceinline__ Pair chosen(uint32_t first, Pair a, Pair b) {
  return {(a.both & first) | (b.both & ~first)};
}

// The key of a rank from the numbers of its groups, which lie `distance` apart; and back.
template <class Bits>
__device__ __forceinline__ void take(Bits& key, const Bits* numbers, int) {
  key = numbers[0];
}
__device__ __forceinline__ void take(Pair& key, const int16_t* numbers, int distance) {
  key = Pair::of(numbers[0], numbers[distance]);
}
template <class Bits>
__device__ __forceinline__ void give(Bits key, Bits* numbers, int) {
  numbers[0] = key;
}
__device__ __forceinline__ void give(Pair key, int16_t* numbers, int distance) {
  numbers[0] = static_cast<int16_t>(key.both);
  numbers[distance] = static_cast<int16_t>(key.both >> 16);
}

}  // namespace lipdeploy
