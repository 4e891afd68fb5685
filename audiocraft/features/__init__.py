"""Frozen extractors, and the loop that fills a store."""
