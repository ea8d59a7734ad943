// Gemm of the domain lipdeploy.f64: one panel of 32 columns against up to 6 rows at a time.
#include <algorithm>
#include <vector>

#include "f64_kernels.h"
#include "f64_tile.h"

namespace lipdeploy::f64 {
namespace {

constexpr int64_t kRowsPerTask = 48;
constexpr int64_t kProductsPerTask = int64_t{1} << 19;

template <class Weight>
struct Gemm {
  const double* x;
  const Weight* panels;
  const double* bias;
  double* y;
  GemmShape shape;
  Tile<Weight> tile;

  // A task is one panel against one chunk of rows.
  int64_t chunks() const { return (shape.rows + kRowsPerTask - 1) / kRowsPerTask; }

  void tasks(int64_t begin, int64_t end) const {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % chunks() * kRowsPerTask;
      rows(task / chunks(), first, std::min(first + kRowsPerTask, shape.rows));
    }
  }

  void rows(int64_t panel, int64_t begin, int64_t end) const {
    const int64_t blocks = (end - begin + kTileRows - 1) / kTileRows;
    for (int64_t block = 0; block < blocks; ++block)  // of equal height: a lone last row would waste its loads
      block_of(panel, begin + (end - begin) * block / blocks, begin + (end - begin) * (block + 1) / blocks);
  }

  void block_of(int64_t panel, int64_t begin, int64_t end) const {
    const int64_t first = panel * kPanel, columns = std::min(kPanel, shape.columns - first);
    const Weight* weights = panels + first * shape.depth;
    const double* from = x + begin * shape.depth;
    if (columns % 8 == 0) {
      double* to = y + begin * shape.columns + first;
      for (int64_t r = 0; r < end - begin; ++r) std::copy_n(bias + first, columns, to + r * shape.columns);
      return tile(from, shape.depth, weights, shape.width(), shape.depth, to, shape.columns, end - begin, columns);
    }
    alignas(64) double sums[kTileRows * kPanel] = {};
    for (int64_t r = 0; r < end - begin; ++r) std::copy_n(bias + first, columns, sums + r * kPanel);
    tile(from, shape.depth, weights, shape.width(), shape.depth, sums, kPanel, end - begin, columns);
    for (int64_t r = 0; r < end - begin; ++r)
      std::copy_n(sums + r * kPanel, columns, y + (begin + r) * shape.columns + first);
  }
};

}  // namespace

template <class Weight>
void gemm_cpu(const double* x, const Weight* panels, const double* bias, double* y, const GemmShape& shape,
              const Tiles& tiles, const Parallel& parallel) {
  if (shape.rows == 0 || shape.columns == 0) return;
  const Gemm<Weight> gemm{x, panels, bias, y, shape, tiles.get<Weight>()};
  const int64_t products = std::max<int64_t>(1, shape.depth * kPanel * std::min(shape.rows, kRowsPerTask));
  parallel(shape.panels() * gemm.chunks(), std::max<int64_t>(1, kProductsPerTask / products),
           [&gemm](int64_t begin, int64_t end) { gemm.tasks(begin, end); });
}

template void gemm_cpu<float>(const double*, const float*, const double*, double*, const GemmShape&, const Tiles&,
                              const Parallel&);
template void gemm_cpu<double>(const double*, const double*, const double*, double*, const GemmShape&, const Tiles&,
                               const Parallel&);

}  // namespace lipdeploy::f64

int32_t lipdeploy_gemm_f64_cpu(const double* x, const void* panels, const double* bias, double* y, int64_t rows,
                               int64_t depth, int64_t columns, int32_t wide, int32_t lanes) {
  using namespace lipdeploy;
  const f64::Tiles tiles = f64::tiles_for(lanes);
  if (rows < 0 || depth < 0 || columns < 0 || tiles.wide == nullptr) return LIPDEPLOY_BAD_ARGUMENT;
  const f64::GemmShape shape{rows, depth, columns};
  if (wide) f64::gemm_cpu(x, static_cast<const double*>(panels), bias, y, shape, tiles, run_inline);
  else f64::gemm_cpu(x, static_cast<const float*>(panels), bias, y, shape, tiles, run_inline);
  return 0;
}
