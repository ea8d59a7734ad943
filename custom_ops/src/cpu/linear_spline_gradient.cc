// The gradients of LinearSpline in training on the CPU, y = s(alpha*x)/alpha (linear_spline_scaled.cc), in one pass over memory.
//
// Nothing but x was saved: for the interval k of each element, with u = (alpha*x - t_k)/h its place in there and g its gradient,
//     W_k = sum of g,  S_k = sum of g*u
// are added up in float64, and all gradients but that of x follow from these two numbers of each interval:
//     grad c_k = (W_k - S_k + S_(k-1))/alpha;   sum g*s(alpha*x) = sum of c_k*W_k + rise_k*S_k;
//     sum g*s'*x = sum of slope_k*(t_k*W_k + h*S_k)/alpha.
// The order of additions depends on the shape alone: neither on the threads nor on the instruction set.
#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "lipdeploy/entry_points.h"
#include "lipdeploy/linear_spline.h"
#include "threads.h"

namespace lipdeploy {
namespace {

// Elements whose intermediate results lie in the L1 cache between two steps.
constexpr int64_t kChunk = 512;
// Shorter stretches of one channel go together with those of its neighbours, as far as tables of this size reach.
constexpr int64_t kLongRun = 1024, kLeastRun = 32, kTablesBytes = 256 << 10;
// Neighbours often share an interval, and a sum that was just written cannot be read at once: a channel's elements
// take turns among as many copies of its sums as leave the table in the L1 cache.
constexpr int64_t kMostCopies = 8, kTableBytes = 24 << 10;
// Elements of a shared spline that are added up together, at least: not a matter of threads, so that sums are not either.
constexpr int64_t kPiece = int64_t{1} << 18;

struct alignas(16) Sums {
  double whole, right;  // W, S
};

template <class Work>
struct Arguments {
  const Work *x, *coefficients, *scale, *inverse;
  LinearSplineShape shape;
  const Work *grad, *raw;
  Work *grad_x, *grad_coefficients, *grad_scale, *grad_inverse;  // null where not wanted
  double limit;
  bool reciprocal;

  bool wants_sums() const { return grad_coefficients != nullptr || grad_scale != nullptr || grad_inverse != nullptr; }
  Work scale_of(int64_t row) const { return scale == nullptr ? Work(1) : scale[row]; }
  Work inverse_of(int64_t row) const { return inverse == nullptr ? Work(1) : inverse[row]; }
};

// Rows of coefficients with all their elements: `runs` stretches of `run` elements, `stride` apart.
struct Unit {
  int64_t first_row, rows, begin, run, runs, stride;
};

// How a tensor is cut into units.
struct Units {
  LinearSplineShape shape;
  int64_t width, piece, count;

  explicit Units(const LinearSplineShape& given) : shape(given) {
    const int64_t elements = shape.elements();
    piece = std::max(kPiece, 4 * shape.knots);
    const int64_t reach = std::min((kLongRun - 1) / shape.inner + 1, kTablesBytes / (shape.knots * int64_t{sizeof(Sums)}));
    width = shape.rows == 1 ? 1 : std::min(std::max(reach, (kLeastRun - 1) / shape.inner + 1), shape.channels);
    count = shape.rows == 1 ? (elements + piece - 1) / piece : (shape.channels + width - 1) / width;
  }

  Unit at(int64_t i) const {
    const int64_t elements = shape.elements(), sample = shape.channels * shape.inner;
    if (shape.rows == 1) return {0, 1, i * piece, std::min(piece, elements - i * piece), 1, 0};
    const int64_t first = i * width, rows = std::min(width, shape.channels - first);
    if (rows == shape.channels) return {0, rows, 0, elements, 1, 0};
    return {first, rows, first * shape.inner, rows * shape.inner, shape.outer, sample};
  }
};

// What belongs to the elements of a stretch: whole periods, and kChunk elements where there are as many.
template <class Work>
struct Pattern {
  int64_t length, copies;
  std::vector<Work> scale;
  std::vector<int32_t> start;  // where the sums of each element's row begin

  Pattern(const Arguments<Work>& given, const Unit& unit, int64_t most_copies) {
    const LinearSplineShape& shape = given.shape;
    const int64_t period = unit.rows * shape.inner, table = unit.rows * shape.knots * int64_t{sizeof(Sums)};
    length = unit.rows == 1 ? std::min(kChunk, unit.run) : std::min((kChunk - 1) / period + 1, unit.run / period) * period;
    for (copies = most_copies; copies > 1 && table * copies > kTableBytes;) copies /= 2;
    scale.resize(length), start.resize(length);
    for (int64_t i = 0; i < length; ++i) {
      const int64_t row = unit.rows == 1 ? 0 : i / shape.inner % unit.rows;
      const int64_t turn = unit.rows == 1 ? i : i % shape.inner + i / period * shape.inner;
      scale[i] = given.scale_of(unit.first_row + row);
      start[i] = static_cast<int32_t>(row * shape.knots * copies + turn % copies);
    }
  }

  // chunk(i, at, count) for the elements [i, i + count) of a run, whose part of the pattern begins at `at`.
  template <class Chunk>
  LIPDEPLOY_INLINE void chunks(int64_t run, const Chunk& chunk) const {
    for (int64_t i = 0, at = 0; i < run;) {
      const int64_t count = std::min(std::min(kChunk, length - at), run - i);
      chunk(i, at, count);
      i += count;
      at = at + count == length ? 0 : at + count;
    }
  }
};

// ---- loops that are compiled once for each instruction set

template <class Work>
LIPDEPLOY_INLINE Work clamped(Work position, Work last) {
  const Work above = position > Work(0) ? position : Work(0);  // NaN to 0
  return above < last ? above : last;
}

template <bool X, bool Table, class Work>
LIPDEPLOY_INLINE void scatter(const Arguments<Work>& given, const Pattern<Work>& pattern, int64_t at, const Work* gains,
                              Sums* sums, const Work* x, const Work* grad, Work* grad_x, int64_t count) {
  const Work lower = given.shape.lower, h = given.shape.knot_spacing, last = static_cast<Work>(given.shape.knots - 2);
  const Work* scale = pattern.scale.data() + at;
  const int32_t *start = pattern.start.data() + at, copies = static_cast<int32_t>(pattern.copies);
  alignas(64) int32_t place[kChunk];
  alignas(64) Work shares[2 * kChunk];
  for (int64_t i = 0; i < count; ++i) {
    const Work z = x[i] * scale[i];
    const int32_t interval = static_cast<int32_t>(clamped((z - lower) / h, last));
    place[i] = start[i] + interval * copies;
    if constexpr (Table) {
      const Work knot_step = static_cast<Work>(interval) * h;
      shares[2 * i] = grad[i];
      shares[2 * i + 1] = grad[i] * ((z - (lower + knot_step)) / h);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (Table) {
      Sums& sum = sums[place[i]];
      sum.whole += shares[2 * i];
      sum.right += shares[2 * i + 1];
    }
    if constexpr (X) grad_x[i] = grad[i] * gains[place[i]];
  }
}

template <bool X, bool Table, class Work>
LIPDEPLOY_INLINE void scatter_unit(const Arguments<Work>& given, const Unit& unit, const Pattern<Work>& pattern,
                                   const Work* gains, Sums* sums) {
  for (int64_t run = 0; run < unit.runs; ++run) {
    const int64_t begin = unit.begin + run * unit.stride;
    pattern.chunks(unit.run, [&](int64_t i, int64_t at, int64_t count) __attribute__((always_inline)) {
      scatter<X, Table>(given, pattern, at, gains, sums, given.x + begin + i, given.grad + begin + i,
                        X ? given.grad_x + begin + i : nullptr, count);
    });
  }
}

// The derivative by x in each interval: slope * alpha / alpha, of which the quotient is 1 but for rounding.
template <class Work>
LIPDEPLOY_INLINE void find_gains(const Arguments<Work>& given, const Unit& unit, int64_t copies, Work* gains) {
  const int64_t knots = given.shape.knots;
  for (int64_t row = 0; row < unit.rows; ++row) {
    const Work* values = given.coefficients + (unit.first_row + row) * knots;
    Work* gain = gains + row * knots * copies;
    const double scale = given.scale_of(unit.first_row + row), inverse = given.inverse_of(unit.first_row + row);
    const double factor = scale * inverse / given.shape.knot_spacing;
    if (copies == 1) {
      for (int64_t k = 0; k + 1 < knots; ++k) gain[k] = static_cast<Work>((values[k + 1] - values[k]) * factor);
    } else {
      for (int64_t k = 0; k + 1 < knots; ++k)
        std::fill_n(gain + k * copies, copies, static_cast<Work>((values[k + 1] - values[k]) * factor));
    }
  }
}

// The gradient by the raw values in place of that by the projected ones: a step within the limit moves all values behind
// it, a step at the limit counts half (as torch's minimum has it), and a change of the mean moves everything.
template <class Work>
LIPDEPLOY_INLINE void through_projection(double* gradient, const Work* raw, int64_t knots, double limit) {
  double mean = 0, until = 0, before = 0;
  for (int64_t k = 0; k < knots; ++k) mean += gradient[k];
  mean /= static_cast<double>(knots);
  for (int64_t k = 0; k + 1 < knots; ++k) {
    const Work rise = raw[k + 1] - raw[k];
    const double step = rise < 0 ? -rise : rise;
    until += gradient[k] - mean;
    const double passed = step > limit ? 0 : step == limit ? until / 2 : until;
    gradient[k] = mean + (passed - before);
    before = passed;
  }
  gradient[knots - 1] = mean - before;
}

template <class Work>
LIPDEPLOY_INLINE void coefficient_gradient(const Arguments<Work>& given, int64_t row, const Sums* sums, double inverse,
                                           double* gradient) {
  const int64_t knots = given.shape.knots;
  gradient[0] = (sums[0].whole - sums[0].right) * inverse;
  for (int64_t k = 1; k + 1 < knots; ++k)
    gradient[k] = (sums[k].whole - sums[k].right + sums[k - 1].right) * inverse;
  gradient[knots - 1] = sums[knots - 2].right * inverse;
  if (given.raw != nullptr) through_projection(gradient, given.raw + row * knots, knots, given.limit);
  Work* result = given.grad_coefficients + row * knots;
  for (int64_t k = 0; k < knots; ++k) result[k] = static_cast<Work>(gradient[k]);
}

// Sums of g*s and of g*s'*z, in kLanes parts each. Where nothing fell, a coefficient that is not finite does no harm.
template <class Work>
LIPDEPLOY_INLINE Sums value_and_position(const Work* values, const Sums* sums, const LinearSplineShape& shape) {
  constexpr int kLanes = 4;
  const Work lower = shape.lower, h = shape.knot_spacing;
  const double wide = shape.knot_spacing, reciprocal = 1 / wide;
  double by_value[kLanes] = {}, by_position[kLanes] = {};
  const auto add = [&](int64_t k, int lane) __attribute__((always_inline)) {
    const Work knot_step = static_cast<Work>(k) * h, knot = lower + knot_step;
    const double whole = sums[k].whole, right = sums[k].right, rise = values[k + 1] - values[k];
    const bool empty = (whole == 0) & (right == 0);
    const double value = values[k] * whole + rise * right, position = rise * reciprocal * (knot * whole + wide * right);
    by_value[lane] += empty ? 0 : value;
    by_position[lane] += empty ? 0 : position;
  };
  int64_t k = 0;
  for (; k + kLanes < shape.knots; k += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) add(k + lane, lane);
  for (; k + 1 < shape.knots; ++k) add(k, 0);
  return {by_value[0] + by_value[1] + (by_value[2] + by_value[3]),
          by_position[0] + by_position[1] + (by_position[2] + by_position[3])};
}

// `room` holds as many numbers as there are knots.
template <class Work>
LIPDEPLOY_INLINE void finish_row(const Arguments<Work>& given, int64_t row, const Sums* sums, double* room) {
  const int64_t knots = given.shape.knots;
  const double scale = given.scale_of(row), inverse = given.inverse_of(row);
  if (given.grad_coefficients != nullptr) coefficient_gradient(given, row, sums, inverse, room);
  if (given.grad_scale == nullptr && given.grad_inverse == nullptr) return;
  const Sums by = value_and_position(given.coefficients + row * knots, sums, given.shape);
  const double through_inverse = given.reciprocal ? by.whole * inverse * inverse : 0;
  if (given.grad_scale != nullptr)
    given.grad_scale[row] = static_cast<Work>(by.right / scale * inverse - through_inverse);
  if (given.grad_inverse != nullptr) given.grad_inverse[row] = static_cast<Work>(by.whole);
}

template <class Work>
struct Loops {
  void (*scatter[3])(const Arguments<Work>&, const Unit&, const Pattern<Work>&, const Work* gains, Sums*);
  void (*gains)(const Arguments<Work>&, const Unit&, int64_t copies, Work* gains);
  void (*finish)(const Arguments<Work>&, int64_t row, const Sums*, double* room);
};

#define LIPDEPLOY_LOOPS(NAME, TARGET)                                                                                   \
  template <class Work>                                                                                                 \
  struct NAME {                                                                                                         \
    template <bool X, bool Table>                                                                                       \
    TARGET static void scatter(const Arguments<Work>& given, const Unit& unit, const Pattern<Work>& pattern,            \
                               const Work* gains, Sums* sums) {                                                         \
      scatter_unit<X, Table>(given, unit, pattern, gains, sums);                                                        \
    }                                                                                                                   \
    TARGET static void gains(const Arguments<Work>& given, const Unit& unit, int64_t copies, Work* gains) {             \
      find_gains(given, unit, copies, gains);                                                                           \
    }                                                                                                                   \
    TARGET static void finish(const Arguments<Work>& given, int64_t row, const Sums* sums, double* room) {              \
      finish_row(given, row, sums, room);                                                                               \
    }                                                                                                                   \
    static constexpr Loops<Work> loops{                                                                                 \
        {scatter<true, true>, scatter<true, false>, scatter<false, true>}, gains, finish};                    \
  };

LIPDEPLOY_LOOPS(Baseline, )
#if defined(LIPDEPLOY_X86_KERNELS)
LIPDEPLOY_LOOPS(Avx2, __attribute__((target("arch=x86-64-v3"))))
#if defined(__clang__)
LIPDEPLOY_LOOPS(Avx512, __attribute__((target("arch=x86-64-v4"))))
#else
LIPDEPLOY_LOOPS(Avx512, __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))))
#endif
#endif

template <class Work>
const Loops<Work>& loops() {
#if defined(LIPDEPLOY_X86_KERNELS)
  if (cpu_kernels().vector_bytes == 64) return Avx512<Work>::loops;
  if (cpu_kernels().vector_bytes == 32) return Avx2<Work>::loops;
#endif
  return Baseline<Work>::loops;
}

// ---- all units

void add_copies(std::vector<Sums>& sums, int64_t copies) {
  if (copies == 1) return;
  for (size_t k = 0; k * copies < sums.size(); ++k) {
    Sums total{0, 0};
    for (int64_t copy = 0; copy < copies; ++copy) {
      total.whole += sums[k * copies + copy].whole;
      total.right += sums[k * copies + copy].right;
    }
    sums[k] = total;
  }
}

template <class Work>
int32_t backward(const Arguments<Work>& given, int64_t threads) {
  const Units units(given.shape);
  const int64_t knots = given.shape.knots;
  const bool shared = given.shape.rows == 1, table = given.wants_sums(), x = given.grad_x != nullptr;
  if (!table && !x) return 0;
  const Loops<Work>& run = loops<Work>();
  std::vector<Sums> pieces(shared && table ? units.count * knots : 0);
  const bool enough = for_each(units.count, threads, given.shape.elements(), [&](int64_t i) {
    const Unit unit = units.at(i);
    const Pattern<Work> pattern(given, unit, table ? kMostCopies : 1);
    std::vector<Work> gains(unit.rows * knots * pattern.copies);
    if (x) run.gains(given, unit, pattern.copies, gains.data());
    std::vector<Sums> sums(table ? gains.size() : 0, Sums{0, 0});
    run.scatter[table ? x ? 0 : 2 : 1](given, unit, pattern, gains.data(), sums.data());
    if (!table) return;
    add_copies(sums, pattern.copies);
    if (shared) return void(std::copy_n(sums.begin(), knots, pieces.begin() + i * knots));
    std::vector<double> room(knots);
    for (int64_t row = 0; row < unit.rows; ++row)
      run.finish(given, unit.first_row + row, sums.data() + row * knots, room.data());
  });
  if (!enough) return LIPDEPLOY_OUT_OF_MEMORY;
  if (!shared || !table) return 0;
  for (size_t i = knots; i < pieces.size(); ++i) {
    pieces[i % knots].whole += pieces[i].whole;
    pieces[i % knots].right += pieces[i].right;
  }
  std::vector<double> room(knots);
  run.finish(given, 0, pieces.data(), room.data());
  return 0;
}

template <class Work>
bool well_formed(const Arguments<Work>& given) {
  const LinearSplineShape& shape = given.shape;
  const bool pointers = given.coefficients != nullptr && (given.scale == nullptr) == (given.inverse == nullptr);
  const bool no_scale = given.scale == nullptr && (given.grad_scale != nullptr || given.grad_inverse != nullptr);
  if (!linear_spline_shape_is_valid(shape) || !pointers || no_scale) return false;
  return shape.elements() == 0 || (given.x != nullptr && given.grad != nullptr);
}

template <class Work>
void no_gradient(const Arguments<Work>& given) {
  const int64_t rows = given.shape.rows;
  if (given.grad_coefficients != nullptr) std::fill_n(given.grad_coefficients, rows * given.shape.knots, Work(0));
  if (given.grad_scale != nullptr) std::fill_n(given.grad_scale, rows, Work(0));
  if (given.grad_inverse != nullptr) std::fill_n(given.grad_inverse, rows, Work(0));
}

}  // namespace
}  // namespace lipdeploy

#define LIPDEPLOY_DEFINE(T, Work)                                                                                      \
  int32_t lipdeploy_linear_spline_gradient_##T##_cpu(LIPDEPLOY_LINEAR_SPLINE_GRADIENT_ARGUMENTS) {                     \
    const lipdeploy::Arguments<Work> given{static_cast<const Work*>(x),                                                \
                                           static_cast<const Work*>(coefficients),                                     \
                                           static_cast<const Work*>(scale),                                            \
                                           static_cast<const Work*>(inverse),                                          \
                                           {outer, channels, inner, rows, knots, lower, knot_spacing},                 \
                                           static_cast<const Work*>(grad),                                             \
                                           static_cast<const Work*>(raw),                                              \
                                           static_cast<Work*>(grad_x),                                                 \
                                           static_cast<Work*>(grad_coefficients),                                      \
                                           static_cast<Work*>(grad_scale),                                             \
                                           static_cast<Work*>(grad_inverse),                                           \
                                           limit,                                                                      \
                                           reciprocal != 0};                                                           \
    if (!lipdeploy::well_formed(given)) return LIPDEPLOY_BAD_ARGUMENT;                                                 \
    if (given.shape.elements() == 0) return lipdeploy::no_gradient(given), 0;                                          \
    try {                                                                                                              \
      return lipdeploy::backward(given, threads);                                                                      \
    } catch (...) {                                                                                                    \
      return LIPDEPLOY_OUT_OF_MEMORY;                                                                                  \
    }                                                                                                                  \
  }
LIPDEPLOY_DEFINE(f32, float)
LIPDEPLOY_DEFINE(f64, double)
