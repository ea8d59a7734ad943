// What the vector kernels of LinearSpline read besides x: the coefficients as computed with, and whose they are.
#pragma once

#include <algorithm>
#include <vector>

#include "dispatch.h"

namespace lipdeploy {

template <class Element>
struct SplineTables {
  using Bits = typename Element::Bits;
  using Work = typename Element::Work;

  // From so many elements of one channel on, each run of them is evaluated on its own.
  static constexpr int64_t kLongRun = 128;
  // Places for larger samples would have to come from memory themselves.
  static constexpr int64_t kLongestPeriod = 1 << 18;

  std::vector<Work> room;
  std::vector<int32_t> starts;
  SplineCall<Element> call;

  // The coefficients must outlive this where they are of the type that computes.
  SplineTables(const Bits* coefficients, const LinearSplineShape& shape)
      : call{shape, widened(coefficients, shape.rows * shape.knots), nullptr, 0, false, false} {
    find_starts();
    call.stream = shape.elements() * static_cast<int64_t>(sizeof(Bits)) >= kStreamBytes;
    call.flat_ends = any_flat_end();
  }
  SplineTables(const SplineTables&) = delete;

 private:
  // A widened copy, or themselves.
  const Work* widened(const Bits* coefficients, int64_t count) {
    if constexpr (sizeof(Work) == sizeof(Bits)) {
      return reinterpret_cast<const Work*>(coefficients);
    } else {
      room.resize(count);
      std::transform(coefficients, coefficients + count, room.begin(), Element::widen);
      return room.data();
    }
  }

  // Where the row of each element of a sample starts, repeated to a period that kPlacesAhead elements do not outrun, and so
  // many beyond it; nothing where rows serve long runs.
  void find_starts() {
    const LinearSplineShape& shape = call.shape;
    const int64_t sample = shape.channels * shape.inner, table = shape.rows * shape.knots;
    if (shape.rows == 1 || shape.inner >= kLongRun || sample > kLongestPeriod || table > INT32_MAX) return;
    call.period = (kPlacesAhead / sample + 1) * sample;
    starts.resize(call.period + kPlacesAhead);
    const int64_t size = static_cast<int64_t>(starts.size());
    for (int64_t i = 0, row = 0; i < size; i += shape.inner) {
      std::fill_n(starts.begin() + i, std::min(shape.inner, size - i), static_cast<int32_t>(row));
      row += shape.knots;
      if (row == table) row = 0;
    }
    call.starts = starts.data();
  }

  bool any_flat_end() const {
    const int64_t knots = call.shape.knots;
    for (const Work *row = call.values, *end = row + call.shape.rows * knots; row < end; row += knots)
      if (row[1] - row[0] == 0 || row[knots - 1] - row[knots - 2] == 0) return true;
    return false;
  }
};

}  // namespace lipdeploy
