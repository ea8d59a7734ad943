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

}  // namespace lipdeploy
