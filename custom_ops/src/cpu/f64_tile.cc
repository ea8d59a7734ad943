// The tile for every instruction set that this build knows, and the choice among them.
//
// Compiled with contraction on: a fused multiply-add only removes a rounding, and the error rule covers both.
#include "f64_tile.h"

#include <initializer_list>

#include "lipdeploy/element.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIPDEPLOY_X86_LEVELS 1
#include <immintrin.h>

#endif

namespace lipdeploy::f64 {
namespace {

namespace portable {
constexpr int kLanes = 2;
typedef double Wide __attribute__((vector_size(16)));
typedef double Unaligned __attribute__((vector_size(16), aligned(8)));
LIPDEPLOY_INLINE Wide load(const double* from) { return *reinterpret_cast<const Unaligned*>(from); }
LIPDEPLOY_INLINE Wide load(const float* from) { return Wide{from[0], from[1]}; }
LIPDEPLOY_INLINE void store(double* to, Wide value) { *reinterpret_cast<Unaligned*>(to) = value; }
#include "f64_tile_body.h"
}  // namespace portable

#if defined(LIPDEPLOY_X86_LEVELS)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kLanes = 4;
using Wide = __m256d;
LIPDEPLOY_INLINE Wide load(const double* from) { return _mm256_loadu_pd(from); }
LIPDEPLOY_INLINE Wide load(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
LIPDEPLOY_INLINE void store(double* to, Wide value) { _mm256_storeu_pd(to, value); }
#include "f64_tile_body.h"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kLanes = 8;
using Wide = __m512d;
LIPDEPLOY_INLINE Wide load(const double* from) { return _mm512_loadu_pd(from); }
LIPDEPLOY_INLINE Wide load(const float* from) { return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from)); }
LIPDEPLOY_INLINE void store(double* to, Wide value) { _mm512_storeu_pd(to, value); }
#include "f64_tile_body.h"
}  // namespace avx512
#pragma GCC pop_options

Tiles vectors_of_4() { return __builtin_cpu_supports("x86-64-v3") ? avx2::kTiles : Tiles{}; }
Tiles vectors_of_8() { return __builtin_cpu_supports("x86-64-v4") ? avx512::kTiles : Tiles{}; }
#else
Tiles vectors_of_4() { return {}; }
Tiles vectors_of_8() { return {}; }
#endif

}  // namespace

Tiles tiles_for(int32_t lanes) {
  if (lanes == 2) return portable::kTiles;
  if (lanes == 4) return vectors_of_4();
  if (lanes == 8) return vectors_of_8();
  if (lanes != 0) return {};
  for (const Tiles best : {vectors_of_8(), vectors_of_4()})
    if (best.wide != nullptr) return best;
  return portable::kTiles;
}

}  // namespace lipdeploy::f64
