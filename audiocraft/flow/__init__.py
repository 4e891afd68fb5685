"""Flow matching: paths, samplers, guidance."""
