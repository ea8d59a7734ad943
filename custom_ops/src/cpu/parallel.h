// How a CPU kernel hands out its work. The kernels see a function that runs ranges, not the runtime behind it.
#pragma once

#include <cstdint>
#include <functional>

namespace lipdeploy {

using Range = std::function<void(int64_t begin, int64_t end)>;

// Runs `range` over [0, total) in pieces of about `grain`, on whatever threads the host offers, and waits for all.
using Parallel = std::function<void(int64_t total, int64_t grain, const Range& range)>;

inline void run_inline(int64_t total, int64_t, const Range& range) {
  if (total > 0) range(0, total);
}

// Pieces of about this many elements are worth a thread.
constexpr int64_t kElementsPerTask = 32768;

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
// One binary, the widest vectors that the machine has.
#define LIPDEPLOY_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LIPDEPLOY_MULTIVERSION
#endif

}  // namespace lipdeploy
