"""Folders that other servers load: the verified bytes, their certificate, and the host's own configuration.

A package is written whole or not at all, and only for a model that verifies within its limit.
"""

from lipdeploy.serve.packages.contents import Contents, Files, contents, together, write
from lipdeploy.serve.packages.kserve import for_kserve
from lipdeploy.serve.packages.mlserver import for_mlserver
from lipdeploy.serve.packages.triton import for_triton

__all__ = ["Contents", "Files", "contents", "for_kserve", "for_mlserver", "for_triton", "together", "write"]
