"""Static pages made from XP folders."""
