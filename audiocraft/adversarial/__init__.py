"""Discriminators and what they are trained for."""
