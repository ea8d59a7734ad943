"""The list of operators. Adding one here makes the tests ask for its kernels, rule, module and page."""

from lipdeploy.ops.group_sort import GROUP_SORT
from lipdeploy.ops.householder import HOUSEHOLDER
from lipdeploy.ops.linear_spline import LINEAR_SPLINE
from lipdeploy.ops.spec import Operator

OPERATORS: dict[str, Operator] = {operator.name: operator for operator in (GROUP_SORT, HOUSEHOLDER, LINEAR_SPLINE)}
