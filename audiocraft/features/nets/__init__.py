"""Networks of others that extractors and metrics run: the names of their published weights, and nothing else."""
