// Conv of the domain lipdeploy.f64: windows are gathered into panels of 32 places (over the whole batch, so that small
// maps fill them too), a block of channels at a time, and multiplied by the weights as they lie in the file.
#include <algorithm>
#include <vector>

#include "f64_kernels.h"
#include "f64_tile.h"

namespace lipdeploy::f64 {
namespace {

constexpr int64_t kDepthPerBlock = 512;  // 4 panels of it take half a megabyte: they stay in the second-level cache
constexpr int64_t kPanelsPerTask = 4;

// Places that lie side by side in the last axis of one sample.
struct Run {
  int64_t sample, place, count;
};

template <class Weight>
struct Conv {
  const double* x;
  const Weight* weight;
  const double* bias;
  double* y;
  ConvShape shape;
  Tile<double> tile;
  int64_t taps, depth, pixels, places, total, block;  // block: channels that are multiplied at once

  Conv(const double* x_, const Weight* weight_, const double* bias_, double* y_, const ConvShape& s, Tile<double> t)
      : x(x_), weight(weight_), bias(bias_), y(y_), shape(s), tile(t), taps(s.taps()), depth(s.depth()),
        pixels(s.pixels()), places(s.places()), total(s.batch * places),
        block(std::clamp<int64_t>(kDepthPerBlock / taps, 1, s.channels)) {}

  size_t scratch_size() const { return static_cast<size_t>(block * taps * (kPanelsPerTask * kPanel + kTileRows)); }

  // Places [begin, end) of the batch, of which there are at most kPanelsPerTask panels.
  void task(int64_t group, int64_t begin, int64_t end, double* scratch) const {
    double* widened = scratch + block * taps * kPanelsPerTask * kPanel;
    start_with_bias(group, begin, end);
    for (int64_t c = 0; c < shape.channels; c += block) {
      const int64_t channels = std::min(block, shape.channels - c), size = channels * taps * kPanel;
      for (int64_t q = begin; q < end; q += kPanel)
        gather(group, q, std::min(kPanel, end - q), c, channels, scratch + (q - begin) / kPanel * size);
      for (int64_t m = 0; m < shape.outputs; m += kTileRows) {
        const int64_t rows = std::min(kTileRows, shape.outputs - m), row = group * shape.outputs + m;
        const double* factors = rows_of(row, rows, c * taps, channels * taps, widened);
        const int64_t stride = factors == widened ? channels * taps : depth;
        for (int64_t q = begin; q < end; q += kPanel)
          multiply(factors, stride, scratch + (q - begin) / kPanel * size, channels * taps, row, rows, q,
                   std::min(kPanel, end - q));
      }
    }
  }

  template <class Visit>
  void segments(int64_t begin, int64_t count, const Visit& visit) const {  // visit(sample, first place, at, length)
    for (int64_t at = 0; at < count;) {
      const int64_t sample = (begin + at) / places, place = (begin + at) % places;
      const int64_t length = std::min(count - at, places - place);
      visit(sample, place, at, length);
      at += length;
    }
  }

  double* result(int64_t sample, int64_t row, int64_t place) const {
    return y + (sample * shape.groups * shape.outputs + row) * places + place;
  }

  void start_with_bias(int64_t group, int64_t begin, int64_t end) const {
    segments(begin, end - begin, [&](int64_t sample, int64_t place, int64_t, int64_t length) {
      for (int64_t m = 0; m < shape.outputs; ++m) {
        const int64_t row = group * shape.outputs + m;
        std::fill_n(result(sample, row, place), length, bias[row]);
      }
    });
  }

  const double* rows_of(int64_t row, int64_t rows, int64_t first, int64_t count, double* widened) const {
    if constexpr (sizeof(Weight) == sizeof(double)) return weight + row * depth + first;
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(weight + (row + r) * depth + first, count, widened + r * count);
    return widened;
  }

  void multiply(const double* factors, int64_t stride, const double* panel, int64_t count, int64_t row, int64_t rows,
                int64_t q, int64_t width) const {
    const int64_t sample = q / places, place = q % places;
    if (width == kPanel && place + width <= places)
      return tile(factors, stride, panel, kPanel, count, result(sample, row, place), places, rows, width);
    alignas(64) double sums[kTileRows * kPanel] = {};
    segments(q, width, [&](int64_t n, int64_t p, int64_t at, int64_t length) {
      for (int64_t r = 0; r < rows; ++r) std::copy_n(result(n, row + r, p), length, sums + r * kPanel + at);
    });
    tile(factors, stride, panel, kPanel, count, sums, kPanel, rows, width);
    segments(q, width, [&](int64_t n, int64_t p, int64_t at, int64_t length) {
      for (int64_t r = 0; r < rows; ++r) std::copy_n(sums + r * kPanel + at, length, result(n, row + r, p));
    });
  }

  // panel[channel][tap][place] = the input under that tap, zero in the padding.
  void gather(int64_t group, int64_t q, int64_t width, int64_t c, int64_t channels, double* panel) const {
    if (width < kPanel) std::fill_n(panel, channels * taps * kPanel, 0.0);
    const int64_t last = shape.output[shape.rank - 1];
    for (int64_t at = 0; at < width;) {
      const int64_t place = (q + at) % places, count = std::min(width - at, last - place % last);
      const Run run{(q + at) / places, place, count};
      const double* plane = x + ((run.sample * shape.groups + group) * shape.channels + c) * pixels;
      for (int64_t tap = 0; tap < taps; ++tap) gather_tap(run, tap, plane, channels, panel + tap * kPanel + at);
      at += count;
    }
  }

  void gather_tap(const Run& run, int64_t tap, const double* plane, int64_t channels, double* to) const {
    const int64_t axis = shape.rank - 1, step = shape.strides[axis], size = shape.input[axis];
    int64_t offset = 0;
    const bool inside = outer_offset(run.place / shape.output[axis], tap / shape.kernel[axis], &offset);
    const int64_t first = run.place % shape.output[axis] * step + tap % shape.kernel[axis] * shape.dilations[axis] -
                          shape.begin[axis];
    // Places [low, high) of the run read from inside the input.
    const int64_t low = inside ? std::min(run.count, first < 0 ? (step - 1 - first) / step : 0) : run.count;
    const int64_t high = inside ? std::clamp<int64_t>((size - first + step - 1) / step, low, run.count) : run.count;
    const double* from = plane + offset * size + first;
    for (int64_t channel = 0; channel < channels; ++channel, from += pixels, to += taps * kPanel) {
      for (int64_t i = 0; i < low; ++i) to[i] = 0.0;
      if (step == 1)
        for (int64_t i = low; i < high; ++i) to[i] = from[i];
      else
        for (int64_t i = low; i < high; ++i) to[i] = from[i * step];
      for (int64_t i = high; i < run.count; ++i) to[i] = 0.0;
    }
  }

  // Where the row of the last axis lies that an outer place reads under an outer tap; false: in the padding.
  bool outer_offset(int64_t place, int64_t tap, int64_t* offset) const {
    int64_t stride = 1;
    for (int64_t axis = shape.rank - 2; axis >= 0; --axis) {
      const int64_t at = place % shape.output[axis] * shape.strides[axis] +
                         tap % shape.kernel[axis] * shape.dilations[axis] - shape.begin[axis];
      if (at < 0 || at >= shape.input[axis]) return false;
      *offset += at * stride;
      stride *= shape.input[axis];
      place /= shape.output[axis];
      tap /= shape.kernel[axis];
    }
    return true;
  }
};

}  // namespace

bool conv_shape_is_valid(const ConvShape& s) {
  if (s.rank < 1 || s.rank > kLargestRank || s.batch < 0) return false;
  if (s.groups < 1 || s.channels < 1 || s.outputs < 1) return false;
  for (int64_t axis = 0; axis < s.rank; ++axis) {
    if (s.input[axis] < 1 || s.kernel[axis] < 1 || s.strides[axis] < 1 || s.dilations[axis] < 1) return false;
    if (s.begin[axis] < 0 || s.output[axis] < 1) return false;
  }
  return true;
}

template <class Weight>
void conv_cpu(const double* x, const Weight* weight, const double* bias, double* y, const ConvShape& shape,
              const Tiles& tiles, Scratch& scratch, const Parallel& parallel) {
  const Conv<Weight> conv(x, weight, bias, y, shape, tiles.wide);
  if (conv.total == 0) return;
  const int64_t panels = (conv.total + kPanel - 1) / kPanel;
  // Few panels: one for each task, so that every thread has some.
  const int64_t width = kPanel * std::clamp<int64_t>(panels / 4, 1, kPanelsPerTask);
  const int64_t pieces = (conv.total + width - 1) / width;
  parallel(shape.groups * pieces, 1, [&](int64_t begin, int64_t end) {
    Scratch::Piece space = scratch.take(conv.scratch_size());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * width;
      conv.task(i / pieces, first, std::min(first + width, conv.total), space->data());
    }
    scratch.give_back(std::move(space));
  });
}

template void conv_cpu<float>(const double*, const float*, const double*, double*, const ConvShape&, const Tiles&,
                              Scratch&, const Parallel&);
template void conv_cpu<double>(const double*, const double*, const double*, double*, const ConvShape&, const Tiles&,
                               Scratch&, const Parallel&);

}  // namespace lipdeploy::f64

int32_t lipdeploy_conv_f64_cpu(const double* x, const void* weight, const double* bias, double* y, const int64_t* sizes,
                               int32_t wide, int32_t lanes) {
  using namespace lipdeploy;
  f64::ConvShape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], {}, {}, {}, {}, {}, {}};
  const f64::Tiles tiles = f64::tiles_for(lanes);
  if (tiles.wide == nullptr || shape.rank < 1 || shape.rank > f64::kLargestRank) return LIPDEPLOY_BAD_ARGUMENT;
  const int64_t* next = sizes + 5;
  for (int64_t* part : {shape.input, shape.kernel, shape.strides, shape.dilations, shape.begin, shape.output})
    for (int64_t axis = 0; axis < shape.rank; ++axis) part[axis] = *next++;
  if (!f64::conv_shape_is_valid(shape)) return LIPDEPLOY_BAD_ARGUMENT;
  try {
    f64::Scratch scratch;
    if (wide) f64::conv_cpu(x, static_cast<const double*>(weight), bias, y, shape, tiles, scratch, run_inline);
    else f64::conv_cpu(x, static_cast<const float*>(weight), bias, y, shape, tiles, scratch, run_inline);
  } catch (...) {
    return LIPDEPLOY_OUT_OF_MEMORY;
  }
  return 0;
}
