// LinearSpline on CUDA: 16 bytes of elements for a thread at once; the coefficients in shared memory where the table
// fits, else through the read-only cache.
//
// The arithmetic costs more than the memory where it is written as in the header: two divisions by the same h, each a
// dozen instructions. In float32 (and the 16-bit types, which compute in it) it is done by fused steps that give the same
// bits (QuickSteps); where a number is too large or too small for them, the pack is computed again as the header says.
#include "lipdeploy/linear_spline.h"

#include <cmath>
#include <type_traits>

#include "launch.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

constexpr int kTableBytes = 32768;
constexpr int kPackThreads = 512;

// ---- the steps of one element

// As the header says, for every input.
template <class Work>
struct PlainSteps {
  Work lower, h;
  int32_t last;

  static bool suits(const LinearSplineShape&) { return true; }
  static PlainSteps of(const LinearSplineShape& shape) {
    return {shape.lower, shape.knot_spacing, static_cast<int32_t>(shape.knots - 2)};
  }

  template <class Element, class Row>
  __device__ __forceinline__ typename Element::Bits plainly(typename Element::Bits input, const Row& row) const {
    return Element::narrow(spline_value(Element::widen(input), row, last, lower, h));
  }
  template <class Element, class Row>
  __device__ __forceinline__ typename Element::Bits quickly(typename Element::Bits input, const Row& row, bool*) const {
    return plainly<Element>(input, row);
  }
};

// The header's bits for what is neither huge nor tiny, with h in [2^-24, 2^24] and at most 2^22 knots.
struct QuickSteps : PlainSteps<float> {
  // 1/h to nearest; the last x - lower that lies in the last interval but not beyond it.
  float inverse, farthest;

  // From 2^23 on the floats are the whole numbers, and their last 23 bits count them.
  static constexpr float kShift = 0x1p23f;
  static constexpr float kLeast = 0x1p-70f, kMost = 0x1p100f;

  static bool suits(const LinearSplineShape& shape) {
    return shape.knots <= 1 << 22 && shape.knot_spacing >= 0x1p-24f && shape.knot_spacing <= 0x1p24f;
  }

  static QuickSteps of(const LinearSplineShape& shape) {
    const float h = shape.knot_spacing, end = static_cast<float>(shape.knots - 1);
    float farthest = end * h;
    while (farthest / h >= end) farthest = std::nextafterf(farthest, 0.f);
    return {PlainSteps<float>::of(shape), 1.f / h, farthest};
  }

  // a/h to nearest, where nothing over- or underflows: with the nearest 1/h, one correction of the product is the division
  // itself (Markstein 1990; Brisebarre, Muller and Raina 2004, division by a number known in advance).
  __device__ __forceinline__ float divided(float a) const {
    const float quotient = a * inverse, rest = __fmaf_rn(-quotient, h, a);
    return __fmaf_rn(rest, inverse, quotient);
  }

  // Clears `sure` where the product leaves the range in which `divided` divides; infinities and NaNs do.
  template <class Element, class Row>
  __device__ __forceinline__ typename Element::Bits quickly(typename Element::Bits input, const Row& row,
                                                            bool* sure) const {
    const float x = Element::widen(input);
    const float position = fmaxf(divided(fminf(x - lower, farthest)), 0.f);
    const float shifted = __fadd_rd(position, kShift), whole = shifted - kShift;
    const int32_t interval = bits_as<int32_t>(shifted) & 0x7fffff;
    const float left = row(interval), right = row(interval + 1);
    const float knot_step = whole * h;
    const float knot = lower + knot_step;
    const float rise = right - left;
    const float product = (x - knot) * rise;
    const bool zero = product == 0.f;
    const float quotient = zero ? product : divided(product);  // keeps the sign of a zero
    *sure &= (fabsf(product) < kMost) & ((fabsf(product) >= kLeast) | zero);
    return Element::narrow_number(left + quotient);
  }
};

template <class Work>
using Steps = std::conditional_t<std::is_same_v<Work, float>, QuickSteps, PlainSteps<Work>>;

// ---- 16 bytes at once

// Which rows of the table the elements of a pack use.
enum class Rows { kOne, kOneAfterTheOther, kAny };

// Coefficients that are wide already.
template <class Work>
struct WideRow {
  using Offset = int32_t;
  const Work* coefficients;

  __device__ __forceinline__ Work operator()(int32_t k) const { return coefficients[k]; }
};

template <class Element, bool Shared>
using Row = std::conditional_t<Shared, WideRow<typename Element::Work>, StoredRow<Element>>;

// The row of each element of the pack that begins at `first`.
template <Rows kRows, int Count, class Row, class Table>
__device__ __forceinline__ void find_rows(uint32_t first, Divider inner, Divider channels, int32_t knots, Table table,
                                          Row (&rows)[Count]) {
  const uint32_t group = inner.quotient(first);
  uint32_t place = first - group * inner.divisor, channel = group - channels.quotient(group) * channels.divisor;
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    rows[k] = {table + static_cast<typename Row::Offset>(channel) * knots};
    if (kRows == Rows::kOneAfterTheOther) ++channel;
    if (kRows == Rows::kAny && ++place == inner.divisor) {
      place = 0;
      channel = channel + 1 == channels.divisor ? 0 : channel + 1;
    }
  }
}

template <class Element, Rows kRows, bool Shared>
__global__ void apply_to_packs(const typename Element::Bits* __restrict__ x,
                               const typename Element::Bits* __restrict__ coefficients,
                               typename Element::Bits* __restrict__ y, uint32_t packs, Divider inner, Divider channels,
                               int32_t knots, Steps<typename Element::Work> steps) {
  using Work = typename Element::Work;
  using P = Pack<typename Element::Bits>;
  __shared__ Work wide[Shared ? kTableBytes / sizeof(Work) : 1];
  if constexpr (Shared) {
    const int32_t entries = static_cast<int32_t>(channels.divisor) * knots;
    for (int32_t i = threadIdx.x; i < entries; i += blockDim.x) wide[i] = Element::widen(coefficients[i]);
    __syncthreads();
  }
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const uint32_t first = i * P::kCount;
    const P p = P::load(x + first);
    Row<Element, Shared> rows[P::kCount];
    if constexpr (Shared) {
      find_rows<kRows>(first, inner, channels, knots, wide, rows);
    } else {
      find_rows<kRows>(first, inner, channels, knots, coefficients, rows);
    }
    P result;
    bool sure = true;
#pragma unroll
    for (int k = 0; k < P::kCount; ++k) result.at[k] = steps.template quickly<Element>(p.at[k], rows[k], &sure);
    if (!sure) {
#pragma unroll
      for (int k = 0; k < P::kCount; ++k) result.at[k] = steps.template plainly<Element>(p.at[k], rows[k]);
    }
    result.store(y + first);
  }
}

// ---- any shape, one element after the other

template <class Element>
__global__ void apply_spline(const typename Element::Bits* __restrict__ x,
                             const typename Element::Bits* __restrict__ coefficients,
                             typename Element::Bits* __restrict__ y, LinearSplineShape shape) {
  using Work = typename Element::Work;
  const Work lower = shape.lower, h = shape.knot_spacing;
  const int32_t last = static_cast<int32_t>(shape.knots - 2);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < shape.elements(); i += stride) {
    const int64_t row = shape.rows == 1 ? 0 : i / shape.inner % shape.channels;
    y[i] = linear_spline<Element>(x[i], coefficients + row * shape.knots, last, lower, h);
  }
}

// ---- which way

template <class Element>
struct Spline {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;
  static constexpr int kCount = Pack<Bits>::kCount;

  const Bits *x, *coefficients;
  Bits* y;
  LinearSplineShape shape;
  cudaStream_t stream;

  int64_t packs() const { return shape.elements() / kCount; }

  template <Rows kRows, bool Shared>
  void launch(int64_t blocks) const {
    LIPDEPLOY_LAUNCH(blocks, kPackThreads, stream, (apply_to_packs<Element, kRows, Shared>), x, coefficients, y,
                     static_cast<uint32_t>(packs()), Divider::by(shape.inner), Divider::by(shape.channels),
                     static_cast<int32_t>(shape.knots), Steps<Work>::of(shape));
  }

  template <Rows kRows>
  void from_either_memory() const {
    const int64_t entries = shape.channels * shape.knots, all = blocks_for(packs(), kPackThreads);
    const int64_t staying = std::min(all, resident_blocks(apply_to_packs<Element, kRows, true>, kPackThreads));
    // Each block copies the table once: together that must not be more than the tensor itself.
    if (entries * static_cast<int64_t>(sizeof(Work)) <= kTableBytes && entries * staying <= shape.elements()) {
      launch<kRows, true>(staying);
    } else {
      launch<kRows, false>(all);
    }
  }

  void in_packs() const {
    if (shape.channels == 1 || shape.inner % kCount == 0) {
      from_either_memory<Rows::kOne>();
    } else if (shape.inner == 1 && shape.channels % kCount == 0) {
      from_either_memory<Rows::kOneAfterTheOther>();
    } else {
      from_either_memory<Rows::kAny>();
    }
  }

  bool suits_packs() const {
    return aligned_for_packs(x, y) && shape.elements() % kCount == 0 && fits_32_bits(shape.elements()) &&
           Steps<Work>::suits(shape);
  }

  void piece() const {
    if (suits_packs()) return in_packs();
    LIPDEPLOY_LAUNCH(blocks_for(shape.elements(), kThreads), kThreads, stream, (apply_spline<Element>), x, coefficients,
                     y, shape);
  }
};

template <class Element>
int32_t linear_spline_cuda(const void* input, const void* table, void* output, LinearSplineShape shape,
                           cudaStream_t stream) {
  using Bits = typename Element::Bits;
  if (shape.elements() == 0) return 0;
  // One row for all: no channels to tell apart.
  if (shape.rows == 1) shape = {shape.elements(), 1, 1, 1, shape.knots, shape.lower, shape.knot_spacing};
  const int64_t block = shape.channels * shape.inner, most = std::max<int64_t>(kMostAtOnce / block, 1);
  for (int64_t first = 0; first < shape.outer; first += most) {
    LinearSplineShape piece = shape;
    piece.outer = std::min(most, shape.outer - first);
    Spline<Element>{static_cast<const Bits*>(input) + first * block, static_cast<const Bits*>(table),
                    static_cast<Bits*>(output) + first * block, piece, stream}
        .piece();
  }
  return static_cast<int32_t>(cudaGetLastError());
}

}  // namespace
}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                             \
  LIPDEPLOY_EXPORT int32_t LIPDEPLOY_CUDA_NAME(lipdeploy_linear_spline_##T)(LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS,     \
                                                                            void* stream) {                      \
    const lipdeploy::LinearSplineShape shape{outer, channels, inner, rows, knots, lower, knot_spacing};          \
    if (!lipdeploy::linear_spline_shape_is_valid(shape)) return LIPDEPLOY_BAD_ARGUMENT;                          \
    return lipdeploy::linear_spline_cuda<lipdeploy::Element>(x, coefficients, y, shape,                          \
                                                             static_cast<cudaStream_t>(stream));                 \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
