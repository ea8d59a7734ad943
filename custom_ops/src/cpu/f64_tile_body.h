// The tile for one instruction set: f64_tile.cc includes this once for each, inside a namespace that defines kLanes,
// the vector type Wide and `load` from doubles and from floats. No include guard, on purpose.

constexpr int64_t kAhead = 16;  // rows of b that are fetched before they are needed

// All trip counts but `depth` are constants, so that the sums stay in registers.
template <int Rows, int Vectors, class Weight>
LIPDEPLOY_INLINE void update(const double* __restrict a, int64_t a_stride, const Weight* __restrict b, int64_t b_stride,
                             int64_t depth, double* __restrict y, int64_t y_stride) {
  Wide sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sum[r][v] = load(y + r * y_stride + v * kLanes);
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    if constexpr (Rows <= 2)  // so few rows wait for memory; reading ahead of the panel's end does no harm
      for (size_t line = 0; line < Vectors * kLanes * sizeof(Weight); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(b + kAhead * b_stride) + line);
    Wide row[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const double factor = a[r * a_stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(y + r * y_stride + v * kLanes, sum[r][v]);
}

// Sixteen registers hold 6 × 2 sums, thirty-two hold 6 × 4; the last vectors of a panel may be fewer.
template <int Rows, class Weight>
LIPDEPLOY_INLINE void across(const double* a, int64_t a_stride, const Weight* b, int64_t b_stride, int64_t depth,
                             double* y, int64_t y_stride, int64_t columns) {
  if constexpr (kLanes == 8) {
    if (columns <= 8) return update<Rows, 1>(a, a_stride, b, b_stride, depth, y, y_stride);
    if (columns <= 16) return update<Rows, 2>(a, a_stride, b, b_stride, depth, y, y_stride);
    if (columns <= 24) return update<Rows, 3>(a, a_stride, b, b_stride, depth, y, y_stride);
    return update<Rows, 4>(a, a_stride, b, b_stride, depth, y, y_stride);
  } else {
    for (int64_t j = 0; j < columns; j += 2 * kLanes)
      update<Rows, 2>(a, a_stride, b + j, b_stride, depth, y + j, y_stride);
  }
}

template <class Weight>
void tile(const double* a, int64_t a_stride, const Weight* b, int64_t b_stride, int64_t depth, double* y,
          int64_t y_stride, int64_t rows, int64_t columns) {
  switch (rows) {
    case 1: return across<1>(a, a_stride, b, b_stride, depth, y, y_stride, columns);
    case 2: return across<2>(a, a_stride, b, b_stride, depth, y, y_stride, columns);
    case 3: return across<3>(a, a_stride, b, b_stride, depth, y, y_stride, columns);
    case 4: return across<4>(a, a_stride, b, b_stride, depth, y, y_stride, columns);
    case 5: return across<5>(a, a_stride, b, b_stride, depth, y, y_stride, columns);
    default: return across<6>(a, a_stride, b, b_stride, depth, y, y_stride, columns);
  }
}

constexpr Tiles kTiles{tile<float>, tile<double>};
