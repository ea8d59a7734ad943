// How a kernel is started: by nvcc on a GPU, or by the emulator of custom_ops/tests on the CPU; and the 16 bytes that a
// thread moves at once.
#pragma once

#if defined(LIPDEPLOY_EMULATE_CUDA)
#include "emulate_cuda.h"
#define LIPDEPLOY_CUDA_NAME(name) name##_emulated
#else
#include <cuda_runtime.h>
#define LIPDEPLOY_CUDA_NAME(name) name##_cuda
#define LIPDEPLOY_LAUNCH(blocks, threads, stream, kernel, ...) \
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(__VA_ARGS__)
#endif

#include <algorithm>
#include <cstdint>

namespace lipdeploy {

constexpr int kThreads = 256;

// Enough blocks to fill any GPU; the kernels stride over the rest, so sizes stay 64-bit. (In the emulator few, so that
// blocks have several turns.)
#if !defined(LIPDEPLOY_EMULATE_CUDA)
constexpr int64_t kMostBlocks = 1 << 16;
#endif
inline int64_t blocks_for(int64_t items, int64_t per_block) {
  return std::min<int64_t>((items + per_block - 1) / per_block, kMostBlocks);
}

// As many blocks as the GPU holds at once: for kernels whose blocks stay, since each must fill a table first. In equal
// shares, because a last round that fills the GPU only in part would cost as much as a whole one.
#if !defined(LIPDEPLOY_EMULATE_CUDA)
template <class Kernel>
int64_t resident_blocks(Kernel kernel, int threads) {
  int device = 0, processors = 0, on_each = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&on_each, kernel, threads, 0);
  return std::max<int64_t>(int64_t{processors} * on_each, 1);
}
#endif

// Division by a number that the host knows, for n < 2^31: a multiplication and shifts, where the processor has no
// instruction. With 2^(c-1) < d <= 2^c and m = ceil(2^(31+c) / d): n*m / 2^(31+c) = n/d + n*e / 2^(31+c) with
// 0 <= e < 1, and the error is below 1/d (Granlund and Montgomery, Division by Invariant Integers, 1994).
struct Divider {
  uint32_t divisor, multiplier, shift;

  static Divider by(int64_t divisor) {
    uint32_t shift = 0;
    while ((int64_t{1} << shift) < divisor) ++shift;
    const uint64_t power = uint64_t{1} << (31 + shift), d = static_cast<uint64_t>(divisor);
    return {static_cast<uint32_t>(d), static_cast<uint32_t>((power + d - 1) / d), shift};
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const { return __umulhi(n + n, multiplier) >> shift; }
};

// Neighbouring elements that are read and written as one, 16 bytes unless said otherwise.
template <class Bits, int Bytes = 16>
struct alignas(Bytes) Pack {
  static constexpr int kCount = Bytes / static_cast<int>(sizeof(Bits));
  Bits at[kCount];

  static __device__ __forceinline__ Pack load(const Bits* from) { return *reinterpret_cast<const Pack*>(from); }
  __device__ __forceinline__ void store(Bits* to) const { *reinterpret_cast<Pack*>(to) = *this; }

  static __device__ __forceinline__ Pack of(const Bits* numbers) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.at[i] = numbers[i];
    return pack;
  }
  __device__ __forceinline__ void copy_to(Bits* numbers) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) numbers[i] = at[i];
  }
};

inline bool aligned_for_packs(const void* x, const void* y, int bytes = 16) {
  return (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % bytes == 0;
}

// With up to as many elements, positions and positions plus one stride of the grid are smaller than 2^32. The tests of
// the emulator make it small.
#if !defined(LIPDEPLOY_MOST_AT_ONCE)
#define LIPDEPLOY_MOST_AT_ONCE (int64_t{1} << 31)
#endif
constexpr int64_t kMostAtOnce = LIPDEPLOY_MOST_AT_ONCE;

inline bool fits_32_bits(int64_t elements) { return elements <= kMostAtOnce; }

}  // namespace lipdeploy
