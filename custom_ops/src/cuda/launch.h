// How a kernel is started: by nvcc on a GPU, or by the emulator of custom_ops/tests on the CPU.
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

// Enough blocks to fill any GPU; the kernels stride over the rest, so sizes stay 64-bit.
inline int64_t blocks_for(int64_t items, int64_t per_block) {
  return std::min<int64_t>((items + per_block - 1) / per_block, 1 << 16);
}

}  // namespace lipdeploy
