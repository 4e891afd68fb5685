"""Grids of the compression solver."""
