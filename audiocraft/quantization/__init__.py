"""Bottlenecks of compression models."""
