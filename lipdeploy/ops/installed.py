"""Where the operator library lies, and the environment variables that name another one or pin its digest."""

from __future__ import annotations

from pathlib import Path

ENVIRONMENT_VARIABLE = "LIPDEPLOY_OPS_LIBRARY"
DIGEST_VARIABLE = "LIPDEPLOY_OPS_SHA256"
INSTALLED = Path(__file__).resolve().parent.parent / "custom_ops_lib" / "liblipdeploy_ops.so"
