"""Running verified models with ONNX Runtime: the only place that imports it.

``CertifiedSession`` verifies a model and serves it; ``predict`` answers with ``CertifiedPrediction``.
"""

from lipdeploy.runtime.library import OperatorLibrary, find_library
from lipdeploy.runtime.prediction import CertifiedPrediction
from lipdeploy.runtime.program import float64_function
from lipdeploy.runtime.session import CertifiedSession

__all__ = ["CertifiedPrediction", "CertifiedSession", "OperatorLibrary", "find_library", "float64_function"]
