"""From a torch module to a verified ONNX file: ``export``, ``ExportResult`` and ``load_target``.

``adapters`` know foreign layers, ``freeze`` bakes parametrisations, ``capture`` runs torch's exporter, ``tidy`` folds
and names, ``assemble`` completes and writes the file, ``parity`` compares it with the torch module.
"""

from lipdeploy.export.options import ExportOptions
from lipdeploy.export.parity import Parity
from lipdeploy.export.pipeline import ExportResult, export
from lipdeploy.export.target import load_target

__all__ = ["ExportOptions", "ExportResult", "Parity", "export", "load_target"]
