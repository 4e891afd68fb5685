"""Grids of the video-to-audio solver."""
