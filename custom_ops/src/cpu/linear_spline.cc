// LinearSpline on the CPU: vectors (simd/spline.h), with the coefficients laid out for them first.
#include "lipdeploy/linear_spline.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "kernels.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

// The coefficients in the type that computes: a widened copy, or themselves.
template <class Element>
const typename Element::Work* widened(const typename Element::Bits* coefficients, const LinearSplineShape& shape,
                                      std::vector<typename Element::Work>& room) {
  if constexpr (sizeof(typename Element::Work) == sizeof(typename Element::Bits)) {
    return reinterpret_cast<const typename Element::Work*>(coefficients);
  } else {
    room.resize(shape.rows * shape.knots);
    std::transform(coefficients, coefficients + shape.rows * shape.knots, room.begin(), Element::widen);
    return room.data();
  }
}

// From so many elements of one channel on, each run of them is evaluated on its own.
constexpr int64_t kLongRun = 128;
// Places for larger samples would have to come from memory themselves.
constexpr int64_t kLongestPeriod = 1 << 18;

// Where the row of each element of a sample starts, repeated to a period that kPlacesAhead elements do not outrun, and so
// many beyond it; empty where rows serve long stretches.
std::vector<int32_t> row_starts(const LinearSplineShape& shape) {
  const int64_t sample = shape.channels * shape.inner;
  if (shape.rows == 1 || shape.inner >= kLongRun || sample > kLongestPeriod) return {};
  std::vector<int32_t> starts((kPlacesAhead / sample + 1) * sample + kPlacesAhead);
  const int64_t size = static_cast<int64_t>(starts.size()), table = shape.channels * shape.knots;
  for (int64_t i = 0, row = 0; i < size; i += shape.inner) {
    std::fill_n(starts.begin() + i, std::min(shape.inner, size - i), static_cast<int32_t>(row));
    row += shape.knots;
    if (row == table) row = 0;
  }
  return starts;
}

template <class Work>
bool any_flat_end(const Work* values, const LinearSplineShape& shape) {
  for (const Work *row = values, *end = values + shape.rows * shape.knots; row < end; row += shape.knots)
    if (row[1] - row[0] == 0 || row[shape.knots - 1] - row[shape.knots - 2] == 0) return true;
  return false;
}

// A table to be widened costs a tenth of what an element costs when it is evaluated by itself.
template <class Element>
bool tables_pay(int64_t elements, int64_t table) {
  constexpr bool kWidened = sizeof(typename Element::Work) != sizeof(typename Element::Bits);
  return elements >= 2 * kPlacesAhead && (!kWidened || elements > table / 8) && table <= INT32_MAX;
}

// Few elements: preparing the tables would cost more than it saves.
template <class Element>
void directly(const typename Element::Bits* x, const typename Element::Bits* coefficients, typename Element::Bits* y,
              const LinearSplineShape& shape, int64_t begin, int64_t end) {
  const int32_t last = static_cast<int32_t>(shape.knots - 2);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = shape.rows == 1 ? 0 : i / shape.inner % shape.channels;
    y[i] = linear_spline<Element>(x[i], coefficients + row * shape.knots, last, shape.lower, shape.knot_spacing);
  }
}

}  // namespace

template <class Element>
void linear_spline_cpu(const void* x_data, const void* coefficient_data, void* y_data, const LinearSplineShape& shape,
                       const Parallel& parallel) {
  using Bits = typename Element::Bits;
  const int64_t elements = shape.elements(), table = shape.rows * shape.knots;
  if (elements == 0) return;
  const Bits *x = static_cast<const Bits*>(x_data), *coefficients = static_cast<const Bits*>(coefficient_data);
  Bits* y = static_cast<Bits*>(y_data);
  if (!tables_pay<Element>(elements, table)) {
    parallel(elements, kElementsPerTask / 2,
             [&](int64_t begin, int64_t end) { directly<Element>(x, coefficients, y, shape, begin, end); });
    return;
  }
  std::vector<typename Element::Work> room;
  const typename Element::Work* values = widened<Element>(coefficients, shape, room);
  const std::vector<int32_t> starts = row_starts(shape);
  const bool stream = elements * static_cast<int64_t>(sizeof(Bits)) >= kStreamBytes;
  const int64_t period = starts.empty() ? 0 : static_cast<int64_t>(starts.size()) - kPlacesAhead;
  const SplineCall<Element> call{x, y, shape, values, period > 0 ? starts.data() : nullptr, period, stream,
                                 any_flat_end(values, shape)};
  const SplineElements<Element> run = cpu_kernels().spline(Element{});
  parallel(elements, kElementsPerTask / 2, [&call, run](int64_t begin, int64_t end) { run(call, begin, end); });
}

}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                                   \
  template void lipdeploy::linear_spline_cpu<lipdeploy::Element>(                                                      \
      const void*, const void*, void*, const lipdeploy::LinearSplineShape&, const lipdeploy::Parallel&);               \
  int32_t lipdeploy_linear_spline_##T##_cpu(LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS) {                                        \
    const lipdeploy::LinearSplineShape shape{outer, channels, inner, rows, knots, lower, knot_spacing};                \
    if (!lipdeploy::linear_spline_shape_is_valid(shape)) return LIPDEPLOY_BAD_ARGUMENT;                                \
    try {                                                                                                              \
      lipdeploy::linear_spline_cpu<lipdeploy::Element>(x, coefficients, y, shape, lipdeploy::run_inline);              \
    } catch (...) {                                                                                                    \
      return LIPDEPLOY_OUT_OF_MEMORY;                                                                                  \
    }                                                                                                                  \
    return 0;                                                                                                          \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
