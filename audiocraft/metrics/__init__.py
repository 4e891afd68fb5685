"""Measures of generated audio, one file each."""
