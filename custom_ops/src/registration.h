// What the descriptions of all our operators have in common, and ONNX Runtime's threads as our kernels see them.
#pragma once

#include <atomic>
#include <stdexcept>

#include "cpu/parallel.h"
#include "ort_tensor.h"

namespace lipdeploy::ort {

// Spreads ranges over ONNX Runtime's own threads.
inline Parallel parallel_for(const Api* api, const OrtKernelContext* context) {
  return [api, context](int64_t total, int64_t grain, const Range& range) {
    struct Work {
      int64_t total, grain;
      const Range& range;
      std::atomic<bool> failed{false};
    } work{total, grain, range};
    const int64_t tasks = (total + grain - 1) / grain;
    if (tasks <= 1) return run_inline(total, grain, range);
    const ParallelTask run = [](void* user_data, size_t iteration) {
      Work& w = *static_cast<Work*>(user_data);
      const int64_t begin = static_cast<int64_t>(iteration) * w.grain;
      try {
        w.range(begin, begin + w.grain < w.total ? begin + w.grain : w.total);
      } catch (...) {
        w.failed = true;
      }
    };
    check(KernelContext_ParallelFor(api, context, run, static_cast<size_t>(tasks), 0, &work));
    if (work.failed) throw std::runtime_error("lipdeploy: out of memory");
  };
}

inline void check_type(const char* op, const Tensor& tensor, int expected) {
  if (tensor.type != expected) throw std::invalid_argument(std::string(op) + ": unexpected element type of an input");
}

// Kernel has kName, kInputs and a constructor from (api, info). Whoever derives adds the types, the provider and
// KernelComputeV2.
template <class Kernel, int OperatorSet>
struct Description : CustomOp {
  Description() {
    GetName = [](const CustomOp*) { return Kernel::kName; };
    GetInputTypeCount = [](const CustomOp*) { return Kernel::kInputs; };
    GetOutputTypeCount = [](const CustomOp*) { return size_t{1}; };
    GetInputCharacteristic = GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
    GetStartVersion = GetEndVersion = [](const CustomOp*) { return OperatorSet; };
    CreateKernelV2 = [](const CustomOp*, const Api* api, const OrtKernelInfo* info, void** kernel) {
      return guarded(api, [&] { *kernel = new Kernel(api, info); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }
};

// The domain lipdeploy.f64 (register_f64.cc).
OrtCustomOpDomain* f64_domain(const Api* api);

}  // namespace lipdeploy::ort
