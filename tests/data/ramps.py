"""Sounds that tell from where a piece of them was cut."""
from pathlib import Path

import torch

from audiocraft.data.audio import write_audio

RATE = 1000


def write_ramps(folder: Path) -> Path:
    """Five files of 1 and 2 s, in which the value at sample i of file f is f / 10 + i / 20000."""
    for f in range(5):
        ramp = f / 10 + torch.arange(RATE * (1 + f % 2)) / 20_000
        write_audio(folder / f'{f}.wav', ramp[None], RATE, subtype='FLOAT')
    return folder
