// The kernels for x86-64-v4: AVX-512 F, BW, DQ, VL.
#define LIPDEPLOY_ISA avx512
#define LIPDEPLOY_VECTOR_BYTES 64
#include "kernels.inc"

namespace lipdeploy {
const CpuKernels kAvx512Kernels = avx512::kernels("avx512");
}
