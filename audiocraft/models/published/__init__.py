"""Codecs in the file layouts of others: AudioCraft's exports, and the EnCodecs of `transformers`."""
