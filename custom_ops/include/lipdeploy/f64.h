// The operators of the domain `lipdeploy.f64`: matrix product and convolution in binary64 with weights that may be
// stored as float32 (widening is exact). They serve only the float64 program that a session builds for itself; no
// exported file contains them.
//
// Every output is one chain of `depth` multiplications and additions onto the bias, each rounded once or twice (fused
// or not): what gamma_{depth+1} of the error rule covers. The order depends on the sizes only, never on the threads.
//
// Gemm: y[r][j] = bias[j] + sum_k x[r][k] * W[j][k]. The weight is stored in panels of 32 columns, panel p being
// W[32 p .. 32 p + 31] transposed: panels[p][k][i] = W[32 p + i][k], zeros where 32 p + i >= columns. Fewer than 32
// columns make one panel whose width is the next multiple of 8.
// Conv: as ONNX defines it, x (batch, groups * channels, *input), weight (groups * outputs, channels, *kernel).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "lipdeploy/entry_points.h"

namespace lipdeploy::f64 {

constexpr int64_t kPanel = 32;
constexpr int64_t kLargestRank = 3;

struct GemmShape {
  int64_t rows, depth, columns;

  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t width() const { return columns < kPanel ? (columns + 7) / 8 * 8 : kPanel; }  // of a panel, as stored
};

struct ConvShape {
  int64_t batch, groups, channels, outputs, rank;  // channels and outputs of one group
  int64_t input[kLargestRank], kernel[kLargestRank], strides[kLargestRank], dilations[kLargestRank];
  int64_t begin[kLargestRank], output[kLargestRank];  // zeros before each axis; sizes of the result

  int64_t taps() const { return product(kernel); }
  int64_t pixels() const { return product(input); }
  int64_t places() const { return product(output); }
  int64_t depth() const { return channels * taps(); }

  int64_t product(const int64_t* sizes) const {
    int64_t result = 1;
    for (int64_t axis = 0; axis < rank; ++axis) result *= sizes[axis];
    return result;
  }
};

// Work space of a kernel: grows to one piece per thread that was ever in it at once, and is kept for the next call.
class Scratch {
 public:
  using Piece = std::unique_ptr<std::vector<double>>;

  Piece take(size_t size) {
    Piece piece;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        piece = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!piece) piece = std::make_unique<std::vector<double>>();
    if (piece->size() < size) piece->resize(size);
    return piece;
  }

  void give_back(Piece piece) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(piece));
  }

 private:
  std::mutex mutex_;
  std::vector<Piece> free_;
};

}  // namespace lipdeploy::f64

// For tests and other hosts, on the calling thread. `weight` points to double where wide = 1, to float where 0; `lanes`
// chooses the vector code: doubles per vector (2: portable, 4: AVX2, 8: AVX-512), 0 the best that this machine has.
// Returns 0, or LIPDEPLOY_BAD_ARGUMENT (also where the machine has no such vectors).
LIPDEPLOY_EXPORT int32_t lipdeploy_gemm_f64_cpu(const double* x, const void* panels, const double* bias, double* y,
                                                int64_t rows, int64_t depth, int64_t columns, int32_t wide,
                                                int32_t lanes);
// sizes: batch, groups, channels, outputs, rank; then, rank numbers each: input, kernel, strides, dilations, begin,
// output.
LIPDEPLOY_EXPORT int32_t lipdeploy_conv_f64_cpu(const double* x, const void* weight, const double* bias, double* y,
                                                const int64_t* sizes, int32_t wide, int32_t lanes);
// Version of the operator set `lipdeploy.f64`.
LIPDEPLOY_EXPORT int32_t lipdeploy_f64_version(void);
