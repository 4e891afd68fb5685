"""Checks of how pictures are chosen from videos, and brought to the sizes of networks."""

import re
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from audiocraft.features.transforms import crop_resized, squash

from .base import Fixture, Report


def check_transforms(fixture: Fixture, report: Report) -> None:
    """Frames squashed, and frames cropped: each pixel exactly, then as the networks get them."""
    for name, transform, shift, scale in (('clip', squash, 0., 1.), ('sync', crop_resized, 0.5, 0.5)):
        row_key = next(key for key in fixture.tensors if key.startswith(f'out.{name}_full_row'))
        pixels_key = next(key for key in fixture.tensors if key.startswith(f'out.{name}_u8_stride'))
        row, stride = (int(re.findall(r'\d+', key)[-1]) for key in (row_key, pixels_key))
        size = fixture[row_key].shape[-1]
        frames = transform(fixture['in.frames_uint8'], size)
        report.equal(f'{name} pixels', frames[..., ::stride, ::stride].tolist(), fixture[pixels_key].tolist())
        image = (frames / 255 - shift) / scale
        report.close(f'{name} row', image[..., row, :], fixture[row_key])
        report.close(f'{name} mean', image.double().mean((-2, -1)), fixture[f'out.{name}_mean'])
        report.equal(f'{name} again', torch.equal(transform(frames, size), frames), True)


def _write(path: Path, fps: Fraction, count: int) -> list[float]:
    """Write small grey pictures with times in whole milliseconds, as Matroska has them, and return these."""
    import av
    times = [round(1000 * index / fps) for index in range(count)]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('ffv1', rate=fps)
        stream.height, stream.width, stream.pix_fmt = 16, 16, 'yuv420p'
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 128, np.uint8), format='rgb24')
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return [time / 1000 for time in times]


def check_read_frames(fixture: Fixture, report: Report) -> None:
    """Videos made like the recorded ones, read with the recorded picking."""
    from audiocraft.data.video import read_video, video_info  # needs PyAV
    with tempfile.TemporaryDirectory() as folder:
        for case in fixture.json['cases']:
            path, fps = Path(folder) / 'video.mkv', Fraction(case['fps'])
            times = {round(time, 3): index for index, time in enumerate(_write(path, fps, case['num_frames']))}
            end = case['end_sec']
            for key in (key for key in case if key.startswith('idx_')):
                rate = float(re.findall(r'\d+', key)[0])
                chosen = read_video(path, rate, audio=False, picking='late').times[rate]
                found = [times[round(time, 3)] for time in chosen.tolist() if time <= end]
                report.equal(f'{fps} fps at {rate:g}', found, case[key])
            report.equal(f'{fps} fps pictures', sum(time <= end for time in times), case['n_all'])
            guessed = Fraction(video_info(path).fps or 0.).limit_denominator(1001)
            report.equal(f'{fps} fps guessed', str(guessed), case['guessed_rate'])


CHECKS = {'mmaudio/video_transforms': check_transforms, 'mmaudio/read_frames': check_read_frames}
