"""Sounds of example clips: what an object of each kind sounds like when it strikes something, and background noise."""

import typing as tp
from dataclasses import dataclass

import numpy as np

STRIKE_LEVEL = 0.11
"""Root mean square of a strike over its first `LEVEL_SECONDS`, before a variation of +-3 dB."""
LEVEL_SECONDS = 0.06
NOISE_DB = (-62., -48.)
"""Range of the level of the background, dB: a strike is -19 dB +-3 and so at least 26 dB above it."""


@dataclass(frozen=True)
class Voice:
    """Modes of a struck object.

    Args:
        pitch (tuple of float): range of the lowest mode, Hz.
        ratios, gains (tuple of float): of the modes, relative to the lowest.
        decay (tuple of float): range of the time constant of the lowest mode, seconds; higher ones decay faster.
        noise (float): level of the noise of the contact, relative to the modes.
        noise_decay (float): its time constant, seconds.
        bend (float): how much higher the pitch starts, as a drum skin does; 0 for none.
    """
    pitch: tuple[float, float]
    ratios: tuple[float, ...]
    gains: tuple[float, ...]
    decay: tuple[float, float]
    noise: float
    noise_decay: float
    bend: float = 0.


VOICES: dict[str, Voice] = {
    'wood': Voice((480., 620.), (1., 2.57, 4.1), (1., 0.6, 0.3), (0.03, 0.045), 0.5, 0.004),
    'metal': Voice((720., 900.), (1., 2.76, 5.4, 7.6), (0.5, 1., 0.8, 0.4), (0.18, 0.25), 0.2, 0.002),
    'glass': Voice((2500., 3100.), (1., 1.45, 2.1), (1., 0.8, 0.5), (0.07, 0.1), 0.4, 0.002),
    'drum': Voice((85., 115.), (1., 1.59, 2.14), (1., 0.5, 0.3), (0.1, 0.15), 0.6, 0.02, bend=0.6),
}


class Instrument:
    """One object that sounds the same at each strike, but for small variations.

    Args:
        kind (str): a key of `VOICES`.
        rng (np.random.Generator): draws the object.
        sample_rate (int): samples per second.
    """

    def __init__(self, kind: str, rng: np.random.Generator, sample_rate: int):
        self.voice, self.sample_rate = VOICES[kind], sample_rate
        self.pitch = rng.uniform(*self.voice.pitch)
        self.decay = rng.uniform(*self.voice.decay)

    def strike(self, rng: np.random.Generator) -> np.ndarray:
        """Return the sound `[T]` of one strike, which starts with its first sample."""
        voice = self.voice
        t = np.arange(int(min(1.5, 7 * self.decay + 0.05) * self.sample_rate)) / self.sample_rate
        pitch = self.pitch * rng.uniform(0.985, 1.015)
        bent = t + voice.bend * 0.03 * (1 - np.exp(-t / 0.03))
        sound = np.zeros_like(t)
        for ratio, gain in zip(voice.ratios, voice.gains):
            if pitch * ratio < 0.46 * self.sample_rate:
                sound += gain * rng.uniform(0.8, 1.2) * np.exp(-t / (self.decay * ratio ** -0.5)) * np.sin(
                    2 * np.pi * pitch * ratio * bent)
        sound += voice.noise * self._contact(rng, t)
        sound[-int(0.01 * self.sample_rate):] *= np.linspace(1, 0, int(0.01 * self.sample_rate))
        level = np.sqrt(np.mean(sound[:int(LEVEL_SECONDS * self.sample_rate)] ** 2))
        return sound * (STRIKE_LEVEL * 10 ** (rng.uniform(-3, 3) / 20) / level)

    def _contact(self, rng: np.random.Generator, t: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(len(t)) * np.exp(-t / self.voice.noise_decay)
        # A skin is soft: the noise of a drum is dull. The running mean is a gentle low pass.
        if self.voice.bend:
            taps = max(1, int(self.sample_rate / 1500))
            noise = np.convolve(noise, np.ones(taps) / np.sqrt(taps))[:len(t)]
        return noise


def background(rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Return noise `[samples]` of random level and colour: power falls as frequency to the power of 0.5 to 1.5."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / sample_rate), 30.)
    noise = np.fft.irfft(spectrum * frequency ** (-rng.uniform(0.5, 1.5) / 2), samples)
    return noise * (10 ** (rng.uniform(*NOISE_DB) / 20) / np.sqrt(np.mean(noise ** 2)))


def draw_sound(rng: np.random.Generator, kind: str, strikes: tp.Sequence[tuple[float, int]], seconds: float,
               sample_rate: int) -> np.ndarray:
    """Return the sound `[1, T]` float32 of a clip.

    Args:
        rng (np.random.Generator): draws objects, variations and noise.
        kind (str): of all objects.
        strikes (sequence of (float, int)): time in seconds and object.
        seconds (float): length.
        sample_rate (int): samples per second.
    """
    samples = round(seconds * sample_rate)
    sound = background(rng, samples, sample_rate)
    instruments = [Instrument(kind, rng, sample_rate) for _ in range(1 + max([body for _, body in strikes], default=0))]
    for time, body in strikes:
        start, strike = round(time * sample_rate), instruments[body].strike(rng)
        length = min(len(strike), samples - start)
        sound[start:start + length] += strike[:length]
    peak = np.abs(sound).max()
    return (sound * min(1., 0.95 / peak))[None].astype(np.float32)
