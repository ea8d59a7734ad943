// The CUDA kernels as C++: entry points lipdeploy_*_emulated, same arguments as lipdeploy_*_cuda.
#include "../src/cuda/group_sort.cu"
#undef LIPDEPLOY_DEFINE
#include "../src/cuda/householder.cu"
#undef LIPDEPLOY_DEFINE
#include "../src/cuda/linear_spline.cu"
