"""The checks of `tests/parity.py`: every module here maps kinds of fixtures to functions in its `CHECKS`."""
