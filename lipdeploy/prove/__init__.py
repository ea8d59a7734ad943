"""Searching for numbers that nobody has to believe: lower estimates, and hints for the verifier."""

from lipdeploy.prove.estimate import lower_estimate

__all__ = ["lower_estimate"]
