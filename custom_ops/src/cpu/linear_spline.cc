// LinearSpline on the CPU: vectors (simd/spline.h), or one by one where there are few.
#include "dispatch.h"
#include "kernels.h"
#include "lipdeploy/entry_points.h"
#include "spline_tables.h"

namespace lipdeploy {
namespace {

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
  const SplineTables<Element> tables(coefficients, shape);
  const SplineElements<Element> run = cpu_kernels().spline(Element{});
  parallel(elements, kElementsPerTask / 2,
           [&](int64_t begin, int64_t end) { run(tables.call, x + begin, y + begin, begin, end); });
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
