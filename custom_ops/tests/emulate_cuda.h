// Enough of CUDA to run the kernels of src/cuda as ordinary C++: blocks one after another, the threads of a block as
// fibers that take turns at __syncthreads(). A barrier that only some threads reach ends the launch with an error, as
// it would hang or corrupt on a GPU.
#pragma once

#include <ucontext.h>

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

enum class State { kRunning, kWaiting, kFinished };

struct Fiber {
  static constexpr size_t kStackBytes = 65536;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kRunning;
};

constexpr int kLaunchFailure = 719;  // cudaErrorLaunchFailure

struct Machine {
  Index thread, block, block_size, grid_size;
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  const std::function<void()>* kernel = nullptr;
  cudaError_t last_error = 0;

  void wait() { leave(State::kWaiting); }

  void launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
    kernel = &body;
    grid_size = {blocks, 1, 1};
    block_size = {threads, 1, 1};
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    for (unsigned b = 0; b < blocks; ++b) {
      block = {b, 0, 0};
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
      for (unsigned t = 0; t < threads; ++t) {
        thread = {t, 0, 0};
        current = &fibers[t];
        current->state = State::kRunning;
        swapcontext(&scheduler, &current->context);
        finished += current->state == State::kFinished;
      }
      if (finished == threads) return true;
      if (finished != 0) return false;
    }
  }
};

inline thread_local Machine machine;

inline void Machine::enter() {
  (*machine.kernel)();
  machine.leave(State::kFinished);
}

}  // namespace emulated

#define threadIdx (emulated::machine.thread)
#define blockIdx (emulated::machine.block)
#define blockDim (emulated::machine.block_size)
#define gridDim (emulated::machine.grid_size)

inline void __syncthreads() { emulated::machine.wait(); }

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
