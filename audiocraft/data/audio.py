"""Audio files (through libsndfile), channels, resampling and levels."""

import typing as tp
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from ..utils.errors import UserError
from .files import replaced
from .media import AUDIO_SUFFIXES, CONTAINER_AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaError, require_file
from .resampling import resample_sinc

KAISER_BEST: dict[str, tp.Any] = {'resampling_method': 'sinc_interp_kaiser', 'lowpass_filter_width': 64,
                                     'rolloff': 0.9475937167399596, 'beta': 14.769656459379492}
"""The filter named "kaiser_best" in resampy and librosa, as MMAudio uses it."""
WRITABLE = {'.wav': ('WAV', 'PCM_16'), '.flac': ('FLAC', 'PCM_16'), '.ogg': ('OGG', 'VORBIS')}
INTEGERS = {'PCM_16': 'int16', 'PCM_24': 'int32'}
"""Encodings of libsndfile whose samples fit into float32 without rounding, and what they are read as."""
SILENCE = 1e-6


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says; `samples` counts per channel."""
    sample_rate: int
    channels: int
    samples: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.sample_rate


def audio_info(path: tp.Union[str, Path]) -> AudioInfo:
    """Return rate, channels and length of an audio file, or of the sound of a video, from its header.

    A container whose header does not tell the length (or that libsndfile cannot open) is decoded.

    Raises:
        MediaError: it is missing, empty or unreadable, or has no sound.
    """
    path = require_file(path)
    if path.suffix.lower() in VIDEO_SUFFIXES + CONTAINER_AUDIO_SUFFIXES:
        from .container_audio import container_audio_info  # needs PyAV, which audio files do not
        return AudioInfo(*container_audio_info(path))
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error
    return AudioInfo(info.samplerate, info.channels, info.frames)


def read_audio(path: tp.Union[str, Path], start: float = 0.,
               duration: tp.Optional[float] = None) -> tuple[torch.Tensor, int]:
    """Read an audio file, or a part of it; of a video, its sound.

    Args:
        path (str or Path): wav, flac, ogg, mp3; with PyAV also mp4, mkv, webm, mov, m4a.
        start (float): seconds.
        duration (float or None): seconds; None for all. Where the file ends earlier, less comes back.
    Returns:
        tuple: `[C, T]` float32, and the sample rate.
    Raises:
        MediaError: the file is missing, empty or unreadable, or `start` lies after its end ('too short').
    """
    path = require_file(path)
    if start < 0 or (duration is not None and duration < 0):
        raise ValueError(f'start and duration must not be negative, got {start} and {duration}')
    if path.suffix.lower() in VIDEO_SUFFIXES + CONTAINER_AUDIO_SUFFIXES:
        from .container_audio import read_container_audio
        wav, sample_rate = read_container_audio(path, start, duration)
        if not wav.shape[1]:
            info = audio_info(path)
            _check_start(path, round(start * sample_rate), info.samples, info.sample_rate)
        return wav, sample_rate
    try:
        with soundfile.SoundFile(str(path)) as file:
            first = round(start * file.samplerate)
            _check_start(path, first, file.frames, file.samplerate)
            file.seek(first)
            count = -1 if duration is None else round(duration * file.samplerate)
            return torch.from_numpy(_planar(file, count)), file.samplerate
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error


def _planar(file: soundfile.SoundFile, count: int) -> np.ndarray:
    """Read `[C, T]` float32."""
    dtype = INTEGERS.get(file.subtype)
    if dtype is None:
        return np.ascontiguousarray(file.read(count, dtype='float32', always_2d=True).T)
    # The same numbers as libsndfile's own conversion to float (a power of two is exact), in a third of the time.
    samples = file.read(count, dtype=dtype, always_2d=True).astype(np.float32)
    planar = np.ascontiguousarray(samples.T)
    planar *= 2. ** (1 - np.iinfo(dtype).bits)
    return planar


def _check_start(path: Path, first: int, samples: int, sample_rate: int) -> None:
    if first > samples or samples == 0:
        raise MediaError(path, 'too short', f'{samples / sample_rate:.2f} s, but to be read '
                                            f'from {first / sample_rate:.2f} s on')


def _unreadable(path: Path, error: soundfile.LibsndfileError) -> MediaError:
    return MediaError(path, 'unreadable', f'not an audio file that libsndfile can read ({error.error_string}); '
                                          f'known suffixes: {" ".join(AUDIO_SUFFIXES)}')


def write_audio(path: tp.Union[str, Path], wav: torch.Tensor, sample_rate: int, *,
                subtype: tp.Optional[str] = None) -> Path:
    """Write an audio file, atomically.

    Args:
        path (str or Path): .wav or .flac (16 bit), or .ogg.
        wav (torch.Tensor): `[C, T]` or `[T]`; clipped to [-1, 1].
        sample_rate (int): samples per second.
        subtype (str or None): libsndfile's name of another encoding, such as 'FLOAT' or 'PCM_24'.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE:
        raise UserError(f'cannot write {path}: use one of the suffixes {" ".join(WRITABLE)}')
    if not bool(torch.isfinite(wav).all()):
        raise UserError(f'cannot write {path}: the samples hold NaN or infinite values')
    container, encoding = WRITABLE[path.suffix.lower()]
    samples = wav.detach().cpu().float().reshape(-1, wav.shape[-1]).t()
    samples = samples if subtype == 'FLOAT' else samples.clamp(-1., 1.)
    with replaced(path) as temporary:
        try:
            soundfile.write(str(temporary), samples.numpy(), sample_rate, format=container, subtype=subtype or encoding)
        except soundfile.LibsndfileError as error:  # it does not say more than "System error." of a full disk
            raise UserError(f'cannot write {path}: {error.error_string} (is there space left?)') from error
    return path


def to_mono(wav: torch.Tensor) -> torch.Tensor:
    """Return the mean of the channels: `[..., C, T]` to `[..., 1, T]`."""
    return wav.mean(-2, keepdim=True)


def convert_channels(wav: torch.Tensor, channels: int) -> torch.Tensor:
    """Return `[..., C, T]` with another number of channels.

    To one channel: their mean; from one: copies of it; from more to fewer: the first ones. Anything else would be made
    up, and is a `ValueError`.
    """
    given = wav.shape[-2]
    if given == channels:
        return wav
    if channels == 1:
        return to_mono(wav)
    if given == 1:
        return wav.expand(*wav.shape[:-2], channels, wav.shape[-1])
    if given > channels:
        return wav[..., :channels, :]
    raise ValueError(f'{given} channels cannot become {channels}: only one channel, or more than wanted, can')


def convert_audio(wav: torch.Tensor, old: int, new: int, channels: int) -> torch.Tensor:
    """Return `[..., C, T]` at another sample rate (`resample_sinc`) and with another number of channels.

    Channels first: it is the cheaper order when there are fewer afterwards, and both steps are linear.
    """
    return resample_sinc(convert_channels(wav, channels), old, new)


@lru_cache(maxsize=32)
def _resampler(old: int, new: int, options: tuple[tuple[str, tp.Any], ...], device: torch.device,
               dtype: torch.dtype) -> torch.nn.Module:
    # The kernel depends on the rates alone; building it costs more than resampling a short clip. Built in float64 and
    # rounded once (torchaudio's default for its functional form as well).
    return torchaudio.transforms.Resample(old, new, **dict(options)).to(device=device, dtype=dtype)


def _resample(wav: torch.Tensor, old: int, new: int, options: tp.Mapping[str, tp.Any]) -> torch.Tensor:
    if old <= 0 or new <= 0 or int(old) != old or int(new) != new:
        raise ValueError(f'sample rates must be positive whole numbers, got {old} and {new}')
    if old == new:
        return wav
    return _resampler(int(old), int(new), tuple(sorted(options.items())), wav.device, wav.dtype)(wav)


def resample(wav: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Resample `[..., T]` from `old` to `new` samples per second with torchaudio's default filter (cached).

    Returns:
        torch.Tensor: `[..., ceil(T * new / old)]`.
    """
    return _resample(wav, old, new, {})


def resample_kaiser_best(wav: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Resample as `resample` does, with the longer and sharper filter `KAISER_BEST`."""
    return _resample(wav, old, new, KAISER_BEST)
