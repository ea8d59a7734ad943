// The plain C functions of the operator library, for hosts other than ONNX Runtime and for tests.
//
// A tensor of any rank is seen as (outer, channels, inner) around its channel axis, contiguous. y may not overlap x.
// Return value: 0 done; negative: bad arguments, nothing was written; positive (CUDA only): the cudaError_t of the launch.
// T is f16, bf16, f32, f64. The CPU functions run on the calling thread; the CUDA ones enqueue on `stream`, and neither
// allocate nor synchronise.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define LIPDEPLOY_EXPORT extern "C" __declspec(dllexport)
#else
#define LIPDEPLOY_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define LIPDEPLOY_BAD_ARGUMENT (-1)
#define LIPDEPLOY_OUT_OF_MEMORY (-2)

#define LIPDEPLOY_GROUP_SORT_ARGUMENTS                                                                       \
  const void *x, void *y, int64_t outer, int64_t channels, int64_t inner, int64_t group_size, int64_t layout, \
      int64_t descending
// coefficients: (rows, knots), rows = 1 or channels
#define LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS                                                                       \
  const void *x, const void *coefficients, void *y, int64_t outer, int64_t channels, int64_t inner, int64_t rows, \
      int64_t knots, float lower, float knot_spacing

// sine, cosine: (channels/2)
#define LIPDEPLOY_HOUSEHOLDER_ARGUMENTS                                                                           \
  const void *x, const void *sine, const void *cosine, void *y, int64_t outer, int64_t channels, int64_t inner, \
      int64_t layout

// LinearSpline in training, CPU only, f32 and f64: y = s(scale*x)*inverse, and the gradients of all that it depends on.
// scale, inverse: (rows), or both null for 1. At most `threads` threads are used; results do not depend on how many.
// A gradient that is not wanted is null. With `reciprocal` not 0, inverse is 1/scale, and grad_scale counts that too. With
// `raw`, the coefficients came from it by clipping steps to +-limit and keeping the mean; grad_coefficients is then raw's.
#define LIPDEPLOY_LINEAR_SPLINE_SCALED_ARGUMENTS                                                                   \
  const void *x, const void *coefficients, const void *scale, const void *inverse, void *y, int64_t outer,         \
      int64_t channels, int64_t inner, int64_t rows, int64_t knots, float lower, float knot_spacing, int64_t threads
#define LIPDEPLOY_LINEAR_SPLINE_GRADIENT_ARGUMENTS                                                                   \
  const void *x, const void *grad, const void *raw, const void *coefficients, const void *scale, const void *inverse, \
      void *grad_x, void *grad_coefficients, void *grad_scale, void *grad_inverse, int64_t outer, int64_t channels,   \
      int64_t inner, int64_t rows, int64_t knots, float lower, float knot_spacing, double limit, int64_t reciprocal,  \
      int64_t threads

#define LIPDEPLOY_FOR_EACH_TYPE(DO) DO(f16, Float16) DO(bf16, BFloat16) DO(f32, Float32) DO(f64, Float64)

#define LIPDEPLOY_DECLARE(T, Element)                                                                  \
  LIPDEPLOY_EXPORT int32_t lipdeploy_group_sort_##T##_cpu(LIPDEPLOY_GROUP_SORT_ARGUMENTS);              \
  LIPDEPLOY_EXPORT int32_t lipdeploy_group_sort_##T##_cuda(LIPDEPLOY_GROUP_SORT_ARGUMENTS, void* stream); \
  LIPDEPLOY_EXPORT int32_t lipdeploy_linear_spline_##T##_cpu(LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS);        \
  LIPDEPLOY_EXPORT int32_t lipdeploy_linear_spline_##T##_cuda(LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS, void* stream); \
  LIPDEPLOY_EXPORT int32_t lipdeploy_householder_##T##_cpu(LIPDEPLOY_HOUSEHOLDER_ARGUMENTS);            \
  LIPDEPLOY_EXPORT int32_t lipdeploy_householder_##T##_cuda(LIPDEPLOY_HOUSEHOLDER_ARGUMENTS, void* stream);
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DECLARE)
#undef LIPDEPLOY_DECLARE
LIPDEPLOY_EXPORT int32_t lipdeploy_linear_spline_scaled_f32_cpu(LIPDEPLOY_LINEAR_SPLINE_SCALED_ARGUMENTS);
LIPDEPLOY_EXPORT int32_t lipdeploy_linear_spline_scaled_f64_cpu(LIPDEPLOY_LINEAR_SPLINE_SCALED_ARGUMENTS);
LIPDEPLOY_EXPORT int32_t lipdeploy_linear_spline_gradient_f32_cpu(LIPDEPLOY_LINEAR_SPLINE_GRADIENT_ARGUMENTS);
LIPDEPLOY_EXPORT int32_t lipdeploy_linear_spline_gradient_f64_cpu(LIPDEPLOY_LINEAR_SPLINE_GRADIENT_ARGUMENTS);

// Version of the operator set (the ONNX domain `lipdeploy`) that the library implements.
LIPDEPLOY_EXPORT int32_t lipdeploy_ops_version(void);
// Version of the package that the library was built from, for example "0.1.0".
LIPDEPLOY_EXPORT const char* lipdeploy_ops_release(void);
// 1 where the library contains the CUDA kernels (their functions above exist), else 0.
LIPDEPLOY_EXPORT int32_t lipdeploy_ops_has_cuda(void);
// Instruction set that the CPU kernels of the operators use: "avx512", "avx2" or "baseline".
LIPDEPLOY_EXPORT const char* lipdeploy_ops_instruction_set(void);
// Chooses another one, for tests; null chooses again as at the start: what the environment variable LIPDEPLOY_CPU names,
// else the widest. Returns LIPDEPLOY_BAD_ARGUMENT for a name that is unknown or that this machine cannot run.
LIPDEPLOY_EXPORT int32_t lipdeploy_ops_use_instruction_set(const char* name);
