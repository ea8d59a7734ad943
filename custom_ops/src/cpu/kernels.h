// The CPU kernels, as register.cc and the C entry points call them.
#pragma once

#include "lipdeploy/group_sort.h"
#include "lipdeploy/householder.h"
#include "lipdeploy/linear_spline.h"
#include "parallel.h"

namespace lipdeploy {

template <class Element>
void group_sort_cpu(const void* x, void* y, const GroupSortShape& shape, const Parallel& parallel);

template <class Element>
void linear_spline_cpu(const void* x, const void* coefficients, void* y, const LinearSplineShape& shape,
                       const Parallel& parallel);

template <class Element>
void householder_cpu(const void* x, const void* sine, const void* cosine, void* y, const HouseholderShape& shape,
                     const Parallel& parallel);

}  // namespace lipdeploy
