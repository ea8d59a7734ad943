"""Probe networks with exactly known Lipschitz constants, and who says less than the truth about them."""
