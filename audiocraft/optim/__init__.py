"""Optimizers, schedules, the update and moving averages."""
