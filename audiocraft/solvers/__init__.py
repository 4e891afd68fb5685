"""Solvers: one file per task."""
