"""The verbs of `python -m audiocraft`."""
