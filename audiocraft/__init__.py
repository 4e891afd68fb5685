"""Train audio-generation models: codecs, video-to-audio, music and speech, in one solver-based framework."""

__version__ = '0.1.0'
