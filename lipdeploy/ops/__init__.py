"""The operators of the ONNX domain ``lipdeploy``: what they mean, and how to say it in standard ONNX.

Each operator has one file with its attributes, its meaning in NumPy and its function body. Everything else
(kernels, verifier rules, torch modules, documentation pages) refers to the entries of ``OPERATORS``, and
``tests/ops/test_every_operator.py`` walks that list. NumPy and onnx only.
"""

from lipdeploy.ops.bodies import attach_functions, function_bodies
from lipdeploy.ops.registry import OPERATORS
from lipdeploy.ops.spec import DOMAIN, VERSION, Attribute, Operator

__all__ = ["DOMAIN", "OPERATORS", "VERSION", "Attribute", "Operator", "attach_functions", "function_bodies"]
