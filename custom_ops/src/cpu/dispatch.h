// The CPU kernels once for each instruction set, and the choice between them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lipdeploy/group_sort.h"
#include "lipdeploy/householder.h"
#include "lipdeploy/linear_spline.h"

namespace lipdeploy {

// Groups of up to this many go through a sorting network on a tile of columns, if there are columns enough to fill it.
constexpr int64_t kLargestNetwork = 4096;

constexpr int64_t kTilesAtOnce = 4;

template <class Bits>
struct SortCall {
  const Bits* x;
  Bits* y;
  GroupSortShape shape;
  Bits infinity, quiet_nan;
  bool stream;  // the output is larger than the caches
};

// Sorts the columns [begin, end). `tile` has room for kTilesAtOnce * shape.size vectors, aligned as one is.
template <class Bits>
using SortColumns = void (*)(const SortCall<Bits>& call, int64_t begin, int64_t end, void* tile);

template <class Element>
struct SplineCall {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;
  LinearSplineShape shape;
  const Work* values;  // (rows, knots), widened
  // For short stretches, else null: where the row of each of `period` elements (whole samples, more than kPlacesAhead) starts
  // in `values`. It goes on for kPlacesAhead beyond the period.
  const int32_t* starts;
  int64_t period;
  bool stream;
  bool flat_ends;  // some row's first or last interval is flat
};

// Elements whose rows are looked up before the place in the period is: four vectors of the longest.
constexpr int64_t kPlacesAhead = 64;

// Evaluates the elements [begin, end), the first of which lies at `x` and has its result at `y`.
template <class Element>
using SplineElements = void (*)(const SplineCall<Element>& call, const typename Element::Bits* x, typename Element::Bits* y,
                                int64_t begin, int64_t end);

// An angle that serves fewer neighbours than this is looked up for each.
constexpr int64_t kShortStretch = 16;

// How pairs and their angles lie in memory.
enum class Pairs {
  kRows,        // at least kShortStretch pairs side by side share one angle
  kSamples,     // a sample's pairs lie side by side: an angle for each of `period`, which is a sample
  kNeighbours,  // a and b alternate: an angle for each of `period` pairs, which are whole samples
  kScattered,
};

template <class Element>
struct HouseholderCall {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;
  const Bits *x, *sines, *cosines;
  Bits* y;
  HouseholderShape shape;
  Pairs pairs;
  const Work *sine, *cosine;  // one for each pair of channels (kRows) or for each of `period`
  int64_t period;
  bool stream;
};

// Reflects the pairs [begin, end).
template <class Element>
using ReflectPairs = void (*)(const HouseholderCall<Element>& call, int64_t begin, int64_t end);

struct CpuKernels {
  const char* name;
  size_t vector_bytes;
  SortColumns<int16_t> sort16;
  SortColumns<int32_t> sort32;
  SortColumns<int64_t> sort64;
  SplineElements<Float16> spline_f16;
  SplineElements<BFloat16> spline_bf16;
  SplineElements<Float32> spline_f32;
  SplineElements<Float64> spline_f64;
  ReflectPairs<Float16> reflect_f16;
  ReflectPairs<BFloat16> reflect_bf16;
  ReflectPairs<Float32> reflect_f32;
  ReflectPairs<Float64> reflect_f64;

  SortColumns<int16_t> sort(int16_t) const { return sort16; }
  SortColumns<int32_t> sort(int32_t) const { return sort32; }
  SortColumns<int64_t> sort(int64_t) const { return sort64; }
  SplineElements<Float16> spline(Float16) const { return spline_f16; }
  SplineElements<BFloat16> spline(BFloat16) const { return spline_bf16; }
  SplineElements<Float32> spline(Float32) const { return spline_f32; }
  SplineElements<Float64> spline(Float64) const { return spline_f64; }
  ReflectPairs<Float16> reflect(Float16) const { return reflect_f16; }
  ReflectPairs<BFloat16> reflect(BFloat16) const { return reflect_bf16; }
  ReflectPairs<Float32> reflect(Float32) const { return reflect_f32; }
  ReflectPairs<Float64> reflect(Float64) const { return reflect_f64; }
};

extern const CpuKernels kBaselineKernels;
#if defined(LIPDEPLOY_X86_KERNELS)
extern const CpuKernels kAvx2Kernels, kAvx512Kernels;
#endif

// The widest set that the machine has, or the one that LIPDEPLOY_CPU or lipdeploy_ops_use_instruction_set names.
const CpuKernels& cpu_kernels();

// Outputs of at least this many bytes are written around the caches.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

}  // namespace lipdeploy
