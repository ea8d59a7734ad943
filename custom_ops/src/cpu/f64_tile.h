// The inner loop of the binary64 products: a tile of y, held in registers, takes in depth steps of a rank-one update.
#pragma once

#include <cstdint>

#include "lipdeploy/f64.h"

namespace lipdeploy::f64 {

constexpr int64_t kTileRows = 6;

// y[r][j] += sum_k a[r][k] * b[k][j] for `rows` <= kTileRows rows and `columns` <= kPanel columns. b is read and y is
// written up to the next multiple of 8 columns.
template <class Weight>
using Tile = void (*)(const double* a, int64_t a_stride, const Weight* b, int64_t b_stride, int64_t depth, double* y,
                      int64_t y_stride, int64_t rows, int64_t columns);

struct Tiles {
  Tile<float> narrow = nullptr;
  Tile<double> wide = nullptr;

  template <class Weight>
  Tile<Weight> get() const {
    if constexpr (sizeof(Weight) == sizeof(float)) return narrow;
    else return wide;
  }
};

// The code for vectors of `lanes` doubles; 0: the widest that this machine has. Null where it has no such vectors.
Tiles tiles_for(int32_t lanes);

}  // namespace lipdeploy::f64
