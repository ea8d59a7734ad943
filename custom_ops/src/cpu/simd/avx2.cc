// The kernels for x86-64-v3: AVX2, F16C.
#define LIPDEPLOY_ISA avx2
#define LIPDEPLOY_VECTOR_BYTES 32
#include "kernels.inc"

namespace lipdeploy {
const CpuKernels kAvx2Kernels = avx2::kernels("avx2");
}
