// Chooses the instruction set at run time.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(LIPDEPLOY_X86_KERNELS)
#include <cpuid.h>
#endif

#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

#if defined(LIPDEPLOY_X86_KERNELS)
// Clang before 18 does not know this name in __builtin_cpu_supports.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

bool runs_here(const CpuKernels& kernels) {
#if defined(LIPDEPLOY_X86_KERNELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    has_f16c();
  if (&kernels == &kAvx2Kernels) return avx2;
  if (&kernels == &kAvx512Kernels)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return &kernels == &kBaselineKernels;
}

// Widest first.
constexpr const CpuKernels* kAll[] = {
#if defined(LIPDEPLOY_X86_KERNELS)
    &kAvx512Kernels, &kAvx2Kernels,
#endif
    &kBaselineKernels};

const CpuKernels* find(const char* name) {
  for (const CpuKernels* kernels : kAll)
    if (std::strcmp(kernels->name, name) == 0 && runs_here(*kernels)) return kernels;
  return nullptr;
}

const CpuKernels* choose() {
  const char* asked = std::getenv("LIPDEPLOY_CPU");
  if (asked != nullptr)
    if (const CpuKernels* kernels = find(asked)) return kernels;
  for (const CpuKernels* kernels : kAll)
    if (runs_here(*kernels)) return kernels;
  return &kBaselineKernels;
}

std::atomic<const CpuKernels*>& chosen() {
  static std::atomic<const CpuKernels*> kernels{choose()};
  return kernels;
}

}  // namespace

const CpuKernels& cpu_kernels() { return *chosen().load(std::memory_order_relaxed); }

}  // namespace lipdeploy

const char* lipdeploy_ops_instruction_set(void) { return lipdeploy::cpu_kernels().name; }

int32_t lipdeploy_ops_use_instruction_set(const char* name) {
  const lipdeploy::CpuKernels* kernels = name == nullptr ? lipdeploy::choose() : lipdeploy::find(name);
  if (kernels == nullptr) return LIPDEPLOY_BAD_ARGUMENT;
  lipdeploy::chosen() = kernels;
  return 0;
}
