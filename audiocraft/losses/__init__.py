"""What a reconstruction costs, by name and weight in a config."""
