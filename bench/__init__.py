"""Measurements: the programs that make them and the figures they made. Not part of the package."""
