"""Sounds for the tests of metrics: struck objects on noise, and clips of them."""

import math

import torch

from audiocraft.data.samples import Clip

PITCH = {'low': 200., 'high': 2400.}


def noise(seconds: float, sample_rate: int, level: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(round(seconds * sample_rate), generator=generator)


def strike(sample_rate: int, pitch: float, decay: float = 0.08) -> torch.Tensor:
    t = torch.arange(round(6 * decay * sample_rate)) / sample_rate
    tones = sum(torch.sin(2 * math.pi * pitch * ratio * t) / ratio for ratio in (1., 1.7, 2.6))
    click = noise(len(t) / sample_rate, sample_rate, 1., 9)[:len(t)] * (-t / 0.003).exp()
    return 0.2 * (tones * (-t / decay).exp() + 0.5 * click)


def struck(times, *, seconds=3., sample_rate=16_000, pitch=800., background=0.003, decay=0.08, seed=0) -> torch.Tensor:
    """Sound `[1, T]` in which something is struck at `times`."""
    wav = noise(seconds, sample_rate, background, seed)
    for time in times:
        start = round(time * sample_rate)
        piece = strike(sample_rate, pitch, decay)[:len(wav) - start]
        wav[start:start + len(piece)] += piece
    return wav[None]


def random_times(seed: int, seconds: float = 3., gap: float = 0.22) -> list[float]:
    """Irregular times, `gap` apart and off the ends."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 6, (1,), generator=generator))
    room = seconds - 0.4 - (count - 1) * gap
    starts = (torch.rand(count, generator=generator, dtype=torch.float64) * room).sort().values
    return (starts + 0.2 + gap * torch.arange(count)).tolist()


def clips(count: int, seed: int = 0) -> list[Clip]:
    """Clips of two kinds by turns, with their true events."""
    found = []
    for index in range(count):
        kind, times = ('low', 'high')[index % 2], random_times(1000 * seed + index)
        wav = struck(times, pitch=PITCH[kind] * (1 + 0.02 * (index % 5)), seed=1000 * seed + index)
        found.append(Clip(id=f'{seed}-{index}', audio=wav, sample_rate=16_000,
                          events=[{'time': time, 'kind': kind} for time in times]))
    return found
