// Enough of CUDA to run the kernels of src/cuda as ordinary C++: blocks one after another, the threads of a block as
// fibers that take turns at barriers. A warp goes on alone, from one __syncwarp() to the next, until it waits at
// __syncthreads(): a kernel that has too weak a barrier reads what is not yet written. A barrier that only some threads
// reach ends the launch with an error, as it would hang or corrupt on a GPU.
//
// Blocks, warps and threads take their turns in rising order, or `backwards`: where two threads meet at a number without
// a barrier in between, the two orders give different results, and one of them is wrong.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __shared__ static thread_local

typedef struct EmulatedStream* cudaStream_t;
typedef int cudaError_t;

namespace emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

enum class State { kRunning, kWaitingForWarp, kWaiting, kFinished };

struct Fiber {
  static constexpr size_t kStackBytes = 65536;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kRunning;
};

constexpr int kLaunchFailure = 719;  // cudaErrorLaunchFailure
constexpr unsigned kWarp = 32;

struct Machine {
  Index thread, block, block_size, grid_size;
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  const std::function<void()>* kernel = nullptr;
  bool backwards = false;
  cudaError_t last_error = 0;

  void wait(State at) { leave(at); }

  void launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
    kernel = &body;
    grid_size = {blocks, 1, 1};
    block_size = {threads, 1, 1};
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    for (unsigned b = 0; b < blocks; ++b) {
      block = {backwards ? blocks - 1 - b : b, 0, 0};
      if (!run_block(threads)) last_error = kLaunchFailure;
    }
  }

 private:
  void leave(State state) {
    current->state = state;
    swapcontext(&current->context, &scheduler);
  }

  static void enter();

  bool run_block(unsigned threads) {
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[t];
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Machine::enter, 0);
    }
    while (true) {
      unsigned finished = 0;
      const unsigned warps = (threads + kWarp - 1) / kWarp;
      for (unsigned w = 0; w < warps; ++w) {
        const unsigned first = kWarp * (backwards ? warps - 1 - w : w);
        const unsigned end = first + kWarp < threads ? first + kWarp : threads;
        if (!run_warp(first, end)) return false;
        finished += fibers[first].state == State::kFinished ? end - first : 0;
      }
      if (finished == threads) return true;
      if (finished != 0) return false;
    }
  }

  // From one barrier of the block to the next; false where threads wait at different ones.
  bool run_warp(unsigned first, unsigned end) {
    State reached = State::kRunning;
    do {
      for (unsigned turn = 0; turn < end - first; ++turn) {
        const unsigned t = backwards ? end - 1 - turn : first + turn;
        thread = {t, 0, 0};
        current = &fibers[t];
        current->state = State::kRunning;
        swapcontext(&scheduler, &current->context);
        if (turn == 0) reached = current->state;
        if (current->state != reached) return false;
      }
    } while (reached == State::kWaitingForWarp);
    return true;
  }
};

inline thread_local Machine machine;

inline void Machine::enter() {
  (*machine.kernel)();
  machine.leave(State::kFinished);
}

}  // namespace emulated

// The order of the launches from now on.
extern "C" inline __attribute__((used)) void lipdeploy_emulate_backwards(int backwards) {
  emulated::machine.backwards = backwards != 0;
}

#define threadIdx (emulated::machine.thread)
#define blockIdx (emulated::machine.block)
#define blockDim (emulated::machine.block_size)
#define gridDim (emulated::machine.grid_size)

inline void __syncthreads() { emulated::machine.wait(emulated::State::kWaiting); }
inline void __syncwarp() { emulated::machine.wait(emulated::State::kWaitingForWarp); }

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

// Halves of a register as signed numbers.
template <class Choice>
inline uint32_t of_halves(uint32_t a, uint32_t b, Choice choice) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const int16_t left = static_cast<int16_t>(a >> shift), right = static_cast<int16_t>(b >> shift);
    result |= static_cast<uint32_t>(static_cast<uint16_t>(choice(left, right))) << shift;
  }
  return result;
}
inline uint32_t __vmins2(uint32_t a, uint32_t b) {
  return of_halves(a, b, [](int16_t left, int16_t right) { return left < right ? left : right; });
}
inline uint32_t __vmaxs2(uint32_t a, uint32_t b) {
  return of_halves(a, b, [](int16_t left, int16_t right) { return left < right ? right : left; });
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// Rounded down, for a >= 0 and the power of two that the kernels add: in double the sum is exact, or a is so small that
// only the power is left. What the rounding to float lifted goes back by one.
inline float __fadd_rd(float a, float power) {
  const double sum = static_cast<double>(a) + power;
  const float nearest = static_cast<float>(sum);
  return nearest > sum ? std::nextafter(nearest, -INFINITY) : nearest;
}

// Few, so that the blocks have several turns.
constexpr int64_t kMostBlocks = 3;
template <class Kernel>
int64_t resident_blocks(Kernel, int) {
  return kMostBlocks;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulated::machine.last_error;
  emulated::machine.last_error = 0;
  return error;
}

#define LIPDEPLOY_LAUNCH(blocks, threads, stream, kernel, ...)                                             \
  do {                                                                                                     \
    (void)(stream);                                                                                        \
    emulated::machine.launch(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), [&] { kernel(__VA_ARGS__); }); \
  } while (0)
