"""From bytes on disk to a batch."""
