// What surrounds the float64 program in a certified prediction, for callers to whom twenty array operations on cold caches
// cost more than the network: the input widened with its length, and margins turned into radii.
//
// The meaning is lipdeploy/verify/radius.py, step by step: each operation rounds once (no contraction), and the results are
// the same bit for bit; a session compares both before it answers.
#include <cmath>
#include <cstdint>
#include <limits>

#include "lipdeploy/entry_points.h"

namespace {

constexpr double kShrink = 1.0 - 0x1p-51;
constexpr double kLeast = 0x1p-1000;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kLanes = 16;

}  // namespace

// wide (rows, columns) = x, and lengths (rows) = sqrt(sum of squares) * factor. The squares are exact; added in any order.
LIPDEPLOY_EXPORT int32_t lipdeploy_f64_widen(const float* x, int64_t rows, int64_t columns, double factor, double* wide,
                                             double* lengths) {
  if (rows < 0 || columns < 0) return LIPDEPLOY_BAD_ARGUMENT;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * columns;
    double* to = wide + row * columns;
    double sums[kLanes] = {};
    int64_t column = 0;
    for (; column + kLanes <= columns; column += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const double value = from[column + lane];
        to[column + lane] = value;
        sums[lane] += value * value;
      }
    for (; column < columns; ++column) {
      const double value = from[column];
      to[column] = value;
      sums[0] += value * value;
    }
    double total = 0.0;
    for (double sum : sums) total += sum;
    lengths[row] = std::sqrt(total) * factor;
  }
  return 0;
}

// scores (rows, classes), classes >= 2; denominators (classes, classes) > 0. Returns 1, and has written nothing that
// counts, where a score is not finite: the caller then takes the long way.
LIPDEPLOY_EXPORT int32_t lipdeploy_f64_radii(const double* scores, const double* norms, const double* denominators,
                                             int64_t rows, int64_t classes, double slope, double offset, double ceiling,
                                             int64_t* label, double* margin, double* radius) {
  if (rows < 0 || classes < 2) return LIPDEPLOY_BAD_ARGUMENT;
  for (int64_t row = 0; row < rows; ++row) {
    const double* score = scores + row * classes;
    int64_t best = 0;
    for (int64_t j = 0; j < classes; ++j) {
      if (!std::isfinite(score[j])) return 1;
      if (score[j] > score[best]) best = j;
    }
    const double norm = norms[row];
    const double taken = norm * slope + offset;
    const double* denominator = denominators + best * classes;
    double least_gap = kInfinity, least = kInfinity;
    bool positive = true;  // and no NaN among the quotients
    for (int64_t j = 0; j < classes; ++j) {
      if (j == best) continue;  // it does not compete with itself
      const double gap = std::nextafter(score[best] - score[j], -kInfinity);
      const double quotient = (gap - taken) / denominator[j];
      if (gap < least_gap) least_gap = gap;
      if (quotient < least) least = quotient;
      positive = positive && quotient > 0.0;
    }
    double certified = least * kShrink;
    const double room = ceiling - norm;
    if (room < certified) certified = room;
    certified -= kLeast;
    label[row] = best;
    margin[row] = least_gap > 0.0 ? least_gap : 0.0;
    radius[row] = positive && std::isfinite(norm) && certified > 0.0 ? certified : 0.0;
  }
  return 0;
}
