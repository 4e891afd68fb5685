"""Task-level models and how to load them."""
