// The kernels for any machine of this kind: SSE2 on x86-64, NEON on AArch64.
#define LIPDEPLOY_ISA baseline
#define LIPDEPLOY_VECTOR_BYTES 16
#include "kernels.inc"

namespace lipdeploy {
const CpuKernels kBaselineKernels = baseline::kernels("baseline");
}
