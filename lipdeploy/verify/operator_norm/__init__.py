"""Proven upper bounds of operator norms: dense matrices and convolutions."""

from lipdeploy.verify.operator_norm.convolution import Convolution
from lipdeploy.verify.operator_norm.dense import dense_gains, spectral_norm_up
from lipdeploy.verify.operator_norm.psd import ProofFailed

__all__ = ["Convolution", "ProofFailed", "dense_gains", "spectral_norm_up"]
