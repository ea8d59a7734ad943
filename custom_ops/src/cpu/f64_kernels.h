// The kernels of the domain lipdeploy.f64, as their registration and the C entry points call them.
#pragma once

#include "f64_tile.h"
#include "lipdeploy/f64.h"
#include "parallel.h"

namespace lipdeploy::f64 {

// Weight is float or double.
template <class Weight>
void gemm_cpu(const double* x, const Weight* panels, const double* bias, double* y, const GemmShape& shape,
              const Tiles& tiles, const Parallel& parallel);

template <class Weight>
void conv_cpu(const double* x, const Weight* weight, const double* bias, double* y, const ConvShape& shape,
              const Tiles& tiles, Scratch& scratch, const Parallel& parallel);

// Whether sizes fit together: all positive but the batch, every window inside the padded input.
bool conv_shape_is_valid(const ConvShape& shape);

}  // namespace lipdeploy::f64
