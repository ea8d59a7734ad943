// Householder on the CPU: vectors (simd/reflect.h), with the angles laid out for them first.
#include "lipdeploy/householder.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

Pairs how_pairs_lie(const HouseholderShape& shape) {
  if (shape.inner >= kShortStretch) return Pairs::kRows;
  if (shape.strided) return Pairs::kSamples;
  return shape.inner == 1 ? Pairs::kNeighbours : Pairs::kScattered;
}

// How many angles the vectors read side by side; where samples follow each other, enough of them for a loop.
int64_t period_of(const HouseholderShape& shape, Pairs pairs) {
  constexpr int64_t kShortest = 1024;
  const int64_t sample = shape.pairs * shape.inner;
  if (pairs == Pairs::kScattered) return 0;
  if (pairs == Pairs::kRows) return shape.pairs;
  return pairs == Pairs::kSamples ? sample : sample * std::min(shape.outer, kShortest / sample + 1);
}

template <class Element>
std::vector<typename Element::Work> laid_out(const typename Element::Bits* angles, const HouseholderShape& shape,
                                             Pairs pairs, int64_t period) {
  std::vector<typename Element::Work> table(period);
  for (int64_t i = 0; i < period; ++i) table[i] = Element::widen(angles[pairs == Pairs::kRows ? i : shape.pair(i)]);
  return table;
}

}  // namespace

template <class Element>
void householder_cpu(const void* x, const void* sine, const void* cosine, void* y, const HouseholderShape& shape,
                     const Parallel& parallel) {
  using Bits = typename Element::Bits;
  if (shape.count() == 0) return;
  const Bits *sines = static_cast<const Bits*>(sine), *cosines = static_cast<const Bits*>(cosine);
  const Pairs pairs = how_pairs_lie(shape);
  const int64_t period = period_of(shape, pairs);
  const auto s = laid_out<Element>(sines, shape, pairs, period), c = laid_out<Element>(cosines, shape, pairs, period);
  const bool stream = 2 * shape.count() * static_cast<int64_t>(sizeof(Bits)) >= kStreamBytes;
  const HouseholderCall<Element> call{static_cast<const Bits*>(x), sines, cosines, static_cast<Bits*>(y), shape, pairs,
                                      s.data(), c.data(), period, stream};
  const ReflectPairs<Element> run = cpu_kernels().reflect(Element{});
  parallel(shape.count(), kElementsPerTask / 2, [&call, run](int64_t begin, int64_t end) { run(call, begin, end); });
}

}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                                   \
  template void lipdeploy::householder_cpu<lipdeploy::Element>(const void*, const void*, const void*, void*,           \
                                                               const lipdeploy::HouseholderShape&,                     \
                                                               const lipdeploy::Parallel&);                            \
  int32_t lipdeploy_householder_##T##_cpu(LIPDEPLOY_HOUSEHOLDER_ARGUMENTS) {                                            \
    lipdeploy::HouseholderShape shape;                                                                                 \
    if (!lipdeploy::householder_shape(outer, channels, inner, layout, &shape)) return LIPDEPLOY_BAD_ARGUMENT;          \
    try {                                                                                                              \
      lipdeploy::householder_cpu<lipdeploy::Element>(x, sine, cosine, y, shape, lipdeploy::run_inline);                \
    } catch (...) {                                                                                                    \
      return LIPDEPLOY_OUT_OF_MEMORY;                                                                                  \
    }                                                                                                                  \
    return 0;                                                                                                          \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
