// LinearSpline on the CPU: one branch-free loop along the contiguous dimension.
#include "lipdeploy/linear_spline.h"

#include <algorithm>

#include "kernels.h"
#include "lipdeploy/entry_points.h"

namespace lipdeploy {
namespace {

// One row of coefficients for a contiguous stretch.
template <class Element, class Bits = typename Element::Bits>
LIPDEPLOY_MULTIVERSION void spline_row(const Bits* __restrict x, const Bits* __restrict coefficients, Bits* __restrict y,
                                       int64_t count, int32_t last, typename Element::Work lower,
                                       typename Element::Work h) {
  for (int64_t i = 0; i < count; ++i) y[i] = linear_spline<Element>(x[i], coefficients, last, lower, h);
}

// Neighbouring elements belong to neighbouring channels, each with a row of its own.
template <class Element, class Bits = typename Element::Bits>
LIPDEPLOY_MULTIVERSION void spline_channels(const Bits* __restrict x, const Bits* __restrict coefficients,
                                            Bits* __restrict y, int64_t count, int64_t knots,
                                            typename Element::Work lower, typename Element::Work h) {
  const int32_t last = static_cast<int32_t>(knots - 2);
  for (int64_t i = 0; i < count; ++i) y[i] = linear_spline<Element>(x[i], coefficients + i * knots, last, lower, h);
}

template <class Element>
struct Spline {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;
  const Bits* x;
  const Bits* coefficients;
  Bits* y;
  LinearSplineShape shape;

  void elements(int64_t begin, int64_t end) const {
    const Work lower = shape.lower, h = shape.knot_spacing;
    const int32_t last = static_cast<int32_t>(shape.knots - 2);
    if (shape.rows == 1) return spline_row<Element>(x + begin, coefficients, y + begin, end - begin, last, lower, h);
    // A stretch stays inside one row of the tensor: all channels of a sample, or all positions of a channel.
    const int64_t stretch = shape.inner == 1 ? shape.channels : shape.inner;
    for (int64_t i = begin; i < end;) {
      const int64_t count = std::min(stretch - i % stretch, end - i);
      const int64_t channel = i / shape.inner % shape.channels;
      const Bits* row = coefficients + channel * shape.knots;
      if (shape.inner == 1) {
        spline_channels<Element>(x + i, row, y + i, count, shape.knots, lower, h);
      } else {
        spline_row<Element>(x + i, row, y + i, count, last, lower, h);
      }
      i += count;
    }
  }
};

}  // namespace

template <class Element>
void linear_spline_cpu(const void* x, const void* coefficients, void* y, const LinearSplineShape& shape,
                       const Parallel& parallel) {
  using Bits = typename Element::Bits;
  const Spline<Element> spline{static_cast<const Bits*>(x), static_cast<const Bits*>(coefficients),
                               static_cast<Bits*>(y), shape};
  if (shape.elements() == 0) return;
  parallel(shape.elements(), kElementsPerTask / 2,
           [&spline](int64_t begin, int64_t end) { spline.elements(begin, end); });
}

}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Element)                                                                                   \
  template void lipdeploy::linear_spline_cpu<lipdeploy::Element>(                                                      \
      const void*, const void*, void*, const lipdeploy::LinearSplineShape&, const lipdeploy::Parallel&);               \
  int32_t lipdeploy_linear_spline_##T##_cpu(LIPDEPLOY_LINEAR_SPLINE_ARGUMENTS) {                                        \
    const lipdeploy::LinearSplineShape shape{outer, channels, inner, rows, knots, lower, knot_spacing};                \
    if (!lipdeploy::linear_spline_shape_is_valid(shape)) return LIPDEPLOY_BAD_ARGUMENT;                                \
    lipdeploy::linear_spline_cpu<lipdeploy::Element>(x, coefficients, y, shape, lipdeploy::run_inline);                \
    return 0;                                                                                                          \
  }
LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_DEFINE)
