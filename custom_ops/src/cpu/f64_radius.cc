// What surrounds the programs in a certified prediction, for callers to whom twenty array operations on cold caches cost
// more than the network: the input widened with its length, and margins turned into radii.
//
// The meaning is lipdeploy/verify/radius.py, step by step: each operation rounds once (no contraction), and the results are
// the same bit for bit; a session compares both before it answers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "lipdeploy/entry_points.h"

namespace {

constexpr double kShrink = 1.0 - 0x1p-51;
constexpr double kLeast = 0x1p-1000;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kLanes = 16;

// What the library is told once about a network: lipdeploy/runtime/native.py fills it.
struct Rule {
  const double* denominators;  // (classes, classes) > 0
  int64_t classes;             // >= 2
  int64_t columns;             // float32 values in a row of the input
  double factor;               // makes a computed length an upper bound
  double slope;
  double offset;
  double ceiling;
};

struct Answer {
  int64_t label;
  double margin;
  double radius;
};

// sqrt(sum of squares) * factor; the squares are exact and added in any order. Keep(column, value) sees every value.
template <typename Keep>
double Length(const float* from, int64_t columns, double factor, const Keep& keep) {
  double sums[kLanes] = {};
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = from[column + lane];
      keep(column + lane, value);
      sums[lane] += value * value;
    }
  for (; column < columns; ++column) {
    const double value = from[column];
    keep(column, value);
    sums[0] += value * value;
  }
  double total = 0.0;
  for (double sum : sums) total += sum;
  return std::sqrt(total) * factor;
}

// False where a score is not finite: the caller then takes the long way.
template <typename T>
bool Certify(const Rule& rule, const T* score, double norm, Answer* answer) {
  int64_t best = 0;
  for (int64_t j = 0; j < rule.classes; ++j) {
    if (!std::isfinite(score[j])) return false;
    if (score[j] > score[best]) best = j;
  }
  const double taken = norm * rule.slope + rule.offset;
  const double top = score[best];
  const double* denominator = rule.denominators + best * rule.classes;
  double least_gap = kInfinity, least = kInfinity;
  bool positive = true;  // and no NaN among the quotients
  for (int64_t j = 0; j < rule.classes; ++j) {
    if (j == best) continue;  // it does not compete with itself
    const double gap = std::nextafter(top - static_cast<double>(score[j]), -kInfinity);
    const double quotient = (gap - taken) / denominator[j];
    if (gap < least_gap) least_gap = gap;
    if (quotient < least) least = quotient;
    positive = positive && quotient > 0.0;
  }
  double certified = least * kShrink;
  const double room = rule.ceiling - norm;
  if (room < certified) certified = room;
  certified -= kLeast;
  answer->label = best;
  answer->margin = least_gap > 0.0 ? least_gap : 0.0;
  answer->radius = positive && std::isfinite(norm) && certified > 0.0 ? certified : 0.0;
  return true;
}

}  // namespace

// wide (rows, columns) = x, and lengths (rows) are upper bounds of the rows' l2 norms.
LIPDEPLOY_EXPORT int32_t lipdeploy_f64_widen(const float* x, int64_t rows, int64_t columns, double factor, double* wide,
                                             double* lengths) {
  if (rows < 0 || columns < 0) return LIPDEPLOY_BAD_ARGUMENT;
  for (int64_t row = 0; row < rows; ++row) {
    double* to = wide + row * columns;
    lengths[row] = Length(x + row * columns, columns, factor, [to](int64_t column, double value) { to[column] = value; });
  }
  return 0;
}

// scores (rows, classes), classes >= 2; denominators (classes, classes) > 0. Returns 1, and has written nothing that
// counts, where a score is not finite: the caller then takes the long way.
LIPDEPLOY_EXPORT int32_t lipdeploy_f64_radii(const double* scores, const double* norms, const double* denominators,
                                             int64_t rows, int64_t classes, double slope, double offset, double ceiling,
                                             int64_t* label, double* margin, double* radius) {
  if (rows < 0 || classes < 2) return LIPDEPLOY_BAD_ARGUMENT;
  const Rule rule{denominators, classes, 0, 1.0, slope, offset, ceiling};
  for (int64_t row = 0; row < rows; ++row) {
    Answer answer;
    if (!Certify(rule, scores + row * classes, norms[row], &answer)) return 1;
    label[row] = answer.label;
    margin[row] = answer.margin;
    radius[row] = answer.radius;
  }
  return 0;
}

// Both in one call, for a float32 program that certifies on its own: x (rows, rule.columns), scores (rows, rule.classes).
// answers is (4, rows): margin, radius, label (as int64), length of x. Returns how many rows have a radius below wanted
// (no radius, where wanted is 0); -1 and nothing that counts where a score or a length is not finite.
LIPDEPLOY_EXPORT int64_t lipdeploy_f32_answers(const void* constants, const float* x, const float* scores, int64_t rows,
                                               double wanted, double* answers) {
  const Rule& rule = *static_cast<const Rule*>(constants);
  int64_t unsure = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const double length = Length(x + row * rule.columns, rule.columns, rule.factor, [](int64_t, double) {});
    Answer answer;
    if (!std::isfinite(length) || !Certify(rule, scores + row * rule.classes, length, &answer)) return -1;
    answers[row] = answer.margin;
    answers[rows + row] = answer.radius;
    std::memcpy(answers + 2 * rows + row, &answer.label, sizeof answer.label);
    answers[3 * rows + row] = length;
    unsure += !(answer.radius > 0.0 && answer.radius >= wanted);
  }
  return unsure;
}
