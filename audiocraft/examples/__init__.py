"""Code that makes example media."""
