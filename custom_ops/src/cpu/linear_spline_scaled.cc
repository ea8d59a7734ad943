// LinearSpline in training on the CPU, forward: y = s(alpha*x)/alpha, the pinned formula between two rounded products.
#include "lipdeploy/entry_points.h"
#include "spline_tables.h"
#include "threads.h"

namespace lipdeploy {
namespace {

// Elements whose products and values lie in the first caches until they are read; and what a thread takes at once.
constexpr int64_t kChunk = 4096, kPiece = 8 * kChunk;

// One factor for each row of coefficients.
template <class Work>
class Factors {
 public:
  template <class Element>
  Factors(const Work* given, const SplineTables<Element>& tables) : factors(given), shape(tables.call.shape) {
    if (tables.call.starts == nullptr || given == nullptr) return;
    neighbours.resize(tables.call.period);
    std::transform(tables.starts.begin(), tables.starts.begin() + tables.call.period, neighbours.begin(),
                   [&](int32_t start) { return given[start / shape.knots]; });
  }

  // to[i] = from[i] times the factor of element begin + i.
  void multiply(const Work* __restrict from, Work* __restrict to, int64_t begin, int64_t count) const {
    const int64_t period = static_cast<int64_t>(neighbours.size()), stretch = shape.rows == 1 ? begin + count : shape.inner;
    for (int64_t i = 0, run; i < count; i += run) {
      const int64_t element = begin + i;
      if (period > 0) {
        const Work* factor = neighbours.data() + element % period;
        run = std::min(period - element % period, count - i);
        for (int64_t k = 0; k < run; ++k) to[i + k] = from[i + k] * factor[k];
      } else {
        const Work factor = factors[shape.rows == 1 ? 0 : element / shape.inner % shape.channels];
        run = std::min(stretch - element % stretch, count - i);
        for (int64_t k = 0; k < run; ++k) to[i + k] = from[i + k] * factor;
      }
    }
  }

 private:
  const Work* factors;
  const LinearSplineShape& shape;
  std::vector<Work> neighbours;  // one for each element of a period, where runs are short
};

template <class Element, class Work>
bool forward(const Work* x, const Work* coefficients, const Work* scale, const Work* inverse, Work* y,
             const LinearSplineShape& shape, int64_t threads) {
  using Bits = typename Element::Bits;
  SplineTables<Element> tables(reinterpret_cast<const Bits*>(coefficients), shape);
  const SplineElements<Element> run = cpu_kernels().spline(Element{});
  const auto evaluate = [&](const Work* from, Work* to, int64_t begin, int64_t end) {
    run(tables.call, reinterpret_cast<const Bits*>(from), reinterpret_cast<Bits*>(to), begin, end);
  };
  if (scale != nullptr) tables.call.stream = false;  // values are read again at once
  const Factors<Work> scales(scale, tables), inverses(inverse, tables);
  const auto chunk = [&](int64_t begin, int64_t end) {
    if (scale == nullptr) return evaluate(x + begin, y + begin, begin, end);
    alignas(64) Work scaled[kChunk], values[kChunk];
    scales.multiply(x + begin, scaled, begin, end - begin);
    evaluate(scaled, values, begin, end);
    inverses.multiply(values, y + begin, begin, end - begin);
  };
  const int64_t elements = shape.elements();
  return for_each((elements - 1) / kPiece + 1, threads, elements, [&](int64_t piece) {
    const int64_t end = std::min(elements, (piece + 1) * kPiece);
    for (int64_t begin = piece * kPiece; begin < end; begin += kChunk) chunk(begin, std::min(end, begin + kChunk));
  });
}

}  // namespace
}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element, Work)                                                                             \
  int32_t lipdeploy_linear_spline_scaled_##T##_cpu(LIPDEPLOY_LINEAR_SPLINE_SCALED_ARGUMENTS) {                          \
    const lipdeploy::LinearSplineShape shape{outer, channels, inner, rows, knots, lower, knot_spacing};                \
    const bool pointers = coefficients != nullptr && (scale == nullptr) == (inverse == nullptr);                       \
    if (!lipdeploy::linear_spline_shape_is_valid(shape) || !pointers) return LIPDEPLOY_BAD_ARGUMENT;                   \
    if (shape.elements() == 0) return 0;                                                                               \
    if (x == nullptr || y == nullptr) return LIPDEPLOY_BAD_ARGUMENT;                                                   \
    try {                                                                                                              \
      const bool enough = lipdeploy::forward<lipdeploy::Element>(                                                      \
          static_cast<const Work*>(x), static_cast<const Work*>(coefficients), static_cast<const Work*>(scale),        \
          static_cast<const Work*>(inverse), static_cast<Work*>(y), shape, threads);                                   \
      return enough ? 0 : LIPDEPLOY_OUT_OF_MEMORY;                                                                     \
    } catch (...) {                                                                                                    \
      return LIPDEPLOY_OUT_OF_MEMORY;                                                                                  \
    }                                                                                                                  \
  }
LIPDEPLOY_DEFINE(f32, Float32, float)
LIPDEPLOY_DEFINE(f64, Float64, double)
