"""Grids: files that list XPs, each with an `explorer`. `dora grid mmaudio.debug --dry_run --init`."""
