// Threads for the training kernels, which no runtime lends any.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace lipdeploy {

// Fewer elements than this do not repay a thread.
constexpr int64_t kElementsPerThread = int64_t{1} << 17;

// Runs `work` for 0 ... count-1 on at most `threads` threads, as far as `elements` repay them; false where memory ran out.
template <class Function>
bool for_each(int64_t count, int64_t threads, int64_t elements, const Function& work) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> enough{true};
  const auto take = [&] {
    try {
      for (int64_t i; (i = next++) < count;) work(i);
    } catch (...) {
      enough = false;
    }
  };
  const int64_t useful = std::min(std::min(threads, elements / kElementsPerThread), count);
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < useful; ++i) others.emplace_back(take);
  } catch (...) {  // fewer threads, then
  }
  take();
  for (std::thread& other : others) other.join();
  return enough;
}

}  // namespace lipdeploy
