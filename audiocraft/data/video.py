"""Reading and writing video with PyAV.

Time is counted from the first picture: a file whose pictures start at 1.4 s (as MPEG-TS does), or whose sound starts
before its pictures, gives pictures and sound that begin together at 0.

**Which picture stands for a moment**: slot k of a rate is at time k / fps, and takes the picture that is *nearest* in
time (the earlier one of two equally near). This is robust to timestamps that are rounded to milliseconds and to
variable frame rates, and the last picture is not lost. The last picture serves for slots up to half a frame period,
or `TOLERANCE`, after its own end; a later slot means that the video is too short.
"""

import typing as tp
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .audio_frames import AudioCollector
from .files import replaced
from .media import MediaError, require_file
from .muxing import AudioTrack, av, container_format, with_decoding_times, write_pictures

Size = tuple[int, int]
View = tp.Callable[[torch.Tensor], torch.Tensor]
TOLERANCE = 0.1
"""Seconds that may be missing at the end (codecs and muxers round): the last picture stays, the sound gets zeros."""


@dataclass
class Video:
    """A decoded video.

    Args:
        frames (dict): for each requested rate, uint8 `[T, 3, H, W]`.
        times (dict): for each requested rate, the times of the chosen pictures `[T]`, seconds.
        audio (torch.Tensor or None): `[C, samples]` float32, its first sample at the time of the first picture.
        sample_rate (int or None): of the audio.
        duration (float): seconds: what was asked for, or the length of the pictures.
        rotation (int): degrees, counter-clockwise, that were applied to the pictures.
    """
    frames: dict[float, torch.Tensor] = field(default_factory=dict)
    times: dict[float, torch.Tensor] = field(default_factory=dict)
    audio: tp.Optional[torch.Tensor] = None
    sample_rate: tp.Optional[int] = None
    duration: float = 0.
    rotation: int = 0


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video says: seconds (None if it does not say), rate, upright size, tracks."""
    duration: tp.Optional[float]
    fps: tp.Optional[float]
    width: int
    height: int
    has_audio: bool
    sample_rate: tp.Optional[int]


class _Slots:
    """Gives each moment of one rate its nearest picture, as the pictures come by."""

    def __init__(self, moments: tp.Callable[[int], float], count: tp.Optional[int], reduce: tp.Optional[View] = None):
        self.moment, self.count, self.reduce = moments, count, reduce
        self.next = 0
        self.pictures: list[torch.Tensor] = []
        self.times: list[float] = []

    @property
    def full(self) -> bool:
        return self.count is not None and self.next >= self.count

    def _take(self, picture: '_Picture') -> None:
        if self.times and self.times[-1] == picture.time:
            self.pictures.append(self.pictures[-1])
        else:
            pixels = picture.pixels()
            self.pictures.append(pixels if self.reduce is None else self.reduce(pixels))
        self.times.append(picture.time)
        self.next += 1

    def between(self, before: '_Picture', after: '_Picture') -> None:
        """Fill the slots up to the time of `after` with the nearer of two consecutive pictures."""
        while not self.full and self.moment(self.next) <= after.time:
            moment = self.moment(self.next)
            self._take(before if moment - before.time <= after.time - moment + 1e-6 else after)

    def until(self, last: '_Picture', reach: float) -> None:
        """Fill the slots up to and including `reach` with the last picture."""
        while not self.full and self.moment(self.next) <= reach + 1e-6:
            self._take(last)


class _LateSlots(_Slots):
    """The picking that MMAudio's features were recorded with: a moment takes the first picture that is not before it.

    The moments are sums of rounded steps, so that some pass the picture that they mean: it is lost, and so are
    the moments after the last picture.
    """

    def __init__(self, rate: float, count: tp.Optional[int], reduce: tp.Optional[View] = None):
        self.sums = [0.]
        super().__init__(self.sums.__getitem__, count, reduce)
        self.step = 1 / rate

    def between(self, before: '_Picture', after: '_Picture') -> None:
        while not self.full and self.moment(self.next) <= after.time:
            self._take(after)
            self.sums.append(self.sums[-1] + self.step)

    def until(self, last: '_Picture', reach: float) -> None:
        pass


class _Picture:
    """A decoded picture, converted when a slot first wants it and only once."""

    def __init__(self, frame: tp.Any, time: float, size: tp.Optional[Size], converter: tp.Any):
        self.frame, self.time, self.size, self.converter = frame, time, size, converter
        self.rotation = int(round(frame.rotation / 90)) % 4
        self._pixels: tp.Optional[torch.Tensor] = None

    def pixels(self) -> torch.Tensor:
        """Return `[1, 3, H, W]` uint8, upright and of the wanted size, the channels of a pixel side by side."""
        if self._pixels is None:
            height, width = self.size or (None, None)
            if self.rotation % 2:
                height, width = width, height
            # Area averaging: strong reductions keep what moves between the pixels.
            image = self.converter.reformat(self.frame, width, height, 'rgb24', interpolation='AREA').to_ndarray()
            image = np.ascontiguousarray(np.rot90(image, self.rotation)) if self.rotation else image
            self._pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            self.frame = None
        return self._pixels


class _Decoder:
    """One pass over a file: pictures go to slots, sound to a collector, until both have enough."""

    def __init__(self, path: tp.Union[str, Path], slots: tp.Sequence[_Slots], *, size: tp.Optional[Size],
                 duration: tp.Optional[float], audio: bool, threads: int):
        self.path, self.slots, self.size, self.duration = require_file(path), slots, size, duration
        self.threads = threads
        self.sound = AudioCollector(self.path) if audio else None
        self.previous: tp.Optional[_Picture] = None
        self.origin: tp.Optional[float] = None
        self.period = 0.04
        self.end = 0.
        self.rotation = 0
        # One for all pictures: it keeps its scaler, which takes longer to set up than a small picture takes to scale.
        self.converter = av.video.reformatter.VideoReformatter()

    def run(self) -> '_Decoder':
        with open_media(self.path) as container:
            streams = [video_stream(container, self.path)]
            self._configure(streams[0])
            if self.sound is not None:
                streams.append(audio_stream(container, self.path))
                streams[1].codec_context.thread_count = 1
            for packet in decoded_packets(container, streams, self.path):
                for frame in packet:
                    self._picture(frame) if isinstance(frame, av.VideoFrame) else self._samples(frame)
                if self._done():
                    break
        if self.previous is None:
            raise MediaError(self.path, 'unreadable', 'its video track holds no picture')
        self.end = max(self.end, self.previous.time + self.period)
        for slots in self.slots:
            slots.until(self.previous, self.end if slots.count is None else self.end + max(self.period / 2, TOLERANCE))
        return self

    def _configure(self, stream: tp.Any) -> None:
        stream.codec_context.thread_count = self.threads
        if self.threads != 1:
            stream.thread_type = 'AUTO'
        if stream.average_rate:
            self.period = float(1 / stream.average_rate)

    def _picture(self, frame: tp.Any) -> None:
        time = frame.time
        if time is None:  # a raw stream: count
            time = self.previous.time + (self.origin or 0.) + self.period if self.previous else 0.
        if self.origin is None:
            self.origin = time
        if self.previous is not None and time - self.origin <= self.previous.time:
            return
        picture = _Picture(frame, time - self.origin, self.size, self.converter)
        for slots in self.slots:
            slots.between(self.previous or picture, picture)
        self.previous, self.rotation = picture, 90 * picture.rotation
        length = frame.duration * float(frame.time_base) if frame.duration and frame.time_base else self.period
        self.end = picture.time + length

    def _samples(self, frame: tp.Any) -> None:
        if self.sound is not None:
            self.sound.add(frame)

    def _done(self) -> bool:
        if self.duration is None or self.origin is None or not all(slots.full for slots in self.slots):
            return False
        return self.sound is None or self.sound.end >= self.origin + self.duration

    def audio(self, duration: float, pad: bool) -> tuple[tp.Optional[torch.Tensor], tp.Optional[int]]:
        """Return the sound of `duration` seconds from the first picture on, and its rate."""
        if self.sound is None:
            return None, None
        start = self.origin or 0.
        missing = start + duration - self.sound.end
        if not pad and missing > TOLERANCE:
            raise MediaError(self.path, 'too short', f'{max(0., duration - missing):.1f} s of audio, '
                                                     f'needs {duration:g} s')
        return torch.from_numpy(self.sound.between(start, duration)), self.sound.sample_rate


def read_video(path: tp.Union[str, Path], fps: tp.Union[float, tp.Sequence[float]] = (8., 25.),
               duration: tp.Optional[float] = None, size: tp.Optional[Size] = None, audio: bool = True, *,
               threads: int = 1, reduce: tp.Optional[tp.Mapping[float, tp.Optional[View]]] = None,
               picking: str = 'nearest') -> Video:
    """Decode a video once, and return its pictures at one or several rates, and its sound.

    Args:
        path (str or Path): mp4, mov, mkv, webm or whatever else FFmpeg reads.
        fps (float or sequence of float): rates; may be empty for the sound alone.
        duration (float or None): seconds from the first picture on; None for all.
        size (tuple of int or None): (height, width) of the pictures, area-averaged; None for their own.
        audio (bool): whether to decode the sound; if so it must be there.
        threads (int): of the decoder; more than 1 pays off for large pictures only.
        reduce (dict or None): for a rate, what is done to each chosen picture uint8 `[1, 3, H, W]` as soon as it is
            decoded, so that a large video takes no gigabytes: returns uint8 `[1, 3, h, w]`.
        picking (str): `nearest`; or `late`, the recorded one of MMAudio, which loses pictures and may return fewer.
    Returns:
        Video: `round(duration * fps)` pictures for each rate, `round(duration * sample_rate)` samples.
    Raises:
        MediaError: its `reason` is 'missing', 'empty', 'unreadable', 'no video track', 'no audio track' or
            'too short'.
    """
    if picking not in ('nearest', 'late'):
        raise ValueError(f'picking must be nearest or late, got "{picking}"')
    rates = [float(rate) for rate in ((fps,) if isinstance(fps, (int, float)) else fps)]
    reduce = reduce or {}
    counts = [None if duration is None else round(duration * rate) for rate in rates]
    slots = [_LateSlots(rate, count, reduce.get(rate)) if picking == 'late' else
             _Slots(_even(rate), count, reduce.get(rate)) for rate, count in zip(rates, counts)]
    decoder = _Decoder(path, slots, size=size, duration=duration, audio=audio, threads=threads).run()
    for rate, slot in zip(rates, slots if picking == 'nearest' else []):
        if duration is None:
            _trim(slot, max(1, round(decoder.end * rate)), decoder)
        elif not slot.full:
            raise MediaError(path, 'too short', f'{decoder.end:.1f} s, needs {duration:g} s')
    length = decoder.end if duration is None else duration
    wav, sample_rate = decoder.audio(length, pad=duration is None)
    return Video(frames={rate: _stack(slot.pictures) for rate, slot in zip(rates, slots)},
                 times={rate: torch.tensor(slot.times, dtype=torch.float64) for rate, slot in zip(rates, slots)},
                 audio=wav, sample_rate=sample_rate, duration=length, rotation=decoder.rotation)


def _even(rate: float) -> tp.Callable[[int], float]:
    return lambda index: index / rate


def _trim(slots: _Slots, count: int, decoder: _Decoder) -> None:
    """Bring the slots of a video read to its end to `count`, which rounding may put one off."""
    slots.count = count
    del slots.pictures[count:], slots.times[count:]
    assert decoder.previous is not None
    slots.until(decoder.previous, float('inf'))


def _stack(pictures: tp.Sequence[torch.Tensor]) -> torch.Tensor:
    """Return uint8 `[T, 3, H, W]`, contiguous."""
    return torch.cat(list(pictures)).contiguous()


def thumbnails(path: tp.Union[str, Path], n: int, size: tp.Optional[Size] = None) -> torch.Tensor:
    """Return `n` pictures `[n, 3, H, W]` uint8, evenly spread over the video (from the middles of n equal parts)."""
    length = video_info(path).duration
    if length is None:
        decoder = _Decoder(path, [], size=size, duration=None, audio=False, threads=1).run()
        length = decoder.end
    slots = _Slots(lambda index: (index + 0.5) * length / n, n)
    decoder = _Decoder(path, [slots], size=size, duration=length, audio=False, threads=1).run()
    if not slots.full:  # the header promised more than there is
        slots.until(tp.cast(_Picture, decoder.previous), float('inf'))
    return _stack(slots.pictures)


def video_info(path: tp.Union[str, Path]) -> VideoInfo:
    """Return what the header of a video says, without decoding more than the first picture (its rotation)."""
    path = require_file(path)
    with open_media(path) as container:
        stream = video_stream(container, path)
        sound = next(iter(container.streams.audio), None)
        length = stream.duration * stream.time_base if stream.duration else None
        if length is None and container.duration is not None:
            length = container.duration / av.time_base
        frame = next((f for frames in decoded_packets(container, [stream], path) for f in frames), None)
        width, height = stream.codec_context.width, stream.codec_context.height
        if frame is not None and round(frame.rotation / 90) % 2:
            width, height = height, width
        return VideoInfo(None if length is None else float(length), float(stream.average_rate or 0) or None, width,
                         height, sound is not None, None if sound is None else sound.codec_context.sample_rate)


def read_media_audio(path: tp.Union[str, Path]) -> tuple[torch.Tensor, int]:
    """Return the sound `[C, T]` float32 of any container, and its sample rate.

    If the file has pictures, sample 0 is at the time of the first one.
    """
    path = require_file(path)
    with open_media(path) as container:
        stream = audio_stream(container, path)
        video = next((s for s in container.streams.video if not is_cover(s)), None)
        sound = AudioCollector(path)
        for frames in decoded_packets(container, [stream], path):
            for frame in frames:
                sound.add(frame)
        start = sound.start
        if video is not None and video.start_time is not None:
            start = float(video.start_time * video.time_base)
        length = sound.end - start
        if stream.duration is not None:  # less the padding of the encoder's last block
            length = min(length, float((stream.start_time or 0) + stream.duration) * float(stream.time_base) - start)
    if sound.end <= start:
        raise MediaError(path, 'unreadable', 'its audio track holds no samples')
    return torch.from_numpy(sound.between(start, max(length, 0.))), sound.sample_rate


def open_media(path: Path) -> tp.Any:
    """Open a container for reading, or raise `MediaError('unreadable')`."""
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(path, 'unreadable', f'not a media file that FFmpeg can read ({_words(error)})') from error


def video_stream(container: tp.Any, path: Path) -> tp.Any:
    """Return the first stream of moving pictures (the cover of an album is none)."""
    stream = next((s for s in container.streams.video if not is_cover(s)), None)
    if stream is None:
        raise MediaError(path, 'no video track')
    return stream


def audio_stream(container: tp.Any, path: Path) -> tp.Any:
    """Return the first audio stream."""
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        raise MediaError(path, 'no audio track')
    return stream


def is_cover(stream: tp.Any) -> bool:
    """Whether a stream of pictures is the cover of an album."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def decoded_packets(container: tp.Any, streams: tp.Sequence[tp.Any], path: Path) -> tp.Iterator[list[tp.Any]]:
    """Yield lists of decoded frames, packet by packet; damage is a `MediaError`."""
    try:
        for packet in container.demux(*streams):
            yield packet.decode()
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(path, 'unreadable', f'damaged data ({_words(error)})') from error


def _words(error: Exception) -> str:
    return getattr(error, 'strerror', None) or str(error)


def write_video(path: tp.Union[str, Path], frames: torch.Tensor, fps: float, audio: tp.Optional[torch.Tensor] = None,
                sample_rate: tp.Optional[int] = None, *, options: tp.Optional[dict[str, str]] = None) -> Path:
    """Write a video (h264 + aac; vp9 + opus for webm), atomically.

    Args:
        path (str or Path): .mp4, .mov, .mkv or .webm.
        frames (torch.Tensor): uint8 `[T, 3, H, W]`; odd sizes get one more row or column (a copy of the last).
        fps (float): pictures per second.
        audio (torch.Tensor or None): `[C, samples]` or `[samples]`.
        sample_rate (int or None): of the audio.
        options (dict or None): of the video encoder.
    """
    if frames.dim() != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f'frames must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}')
    pictures = frames.detach().cpu().permute(0, 2, 3, 1).numpy()
    pictures = np.pad(pictures, [(0, 0), (0, pictures.shape[1] % 2), (0, pictures.shape[2] % 2), (0, 0)], mode='edge')
    wav = None if audio is None else audio.detach().cpu().float().numpy()
    write_pictures(path, (np.ascontiguousarray(picture) for picture in pictures), fps,
                   size=(pictures.shape[2], pictures.shape[1]), audio=wav, sample_rate=sample_rate, options=options)
    return Path(path)


def remux_audio(video_in: tp.Union[str, Path], wav: torch.Tensor, sample_rate: int, out: tp.Union[str, Path], *,
                duration: tp.Optional[float] = None) -> Path:
    """Put other sound to a video: its pictures are copied, not encoded again, and keep their rotation.

    Args:
        video_in (str or Path): any video.
        wav (torch.Tensor): `[C, T]` or `[T]`; its first sample goes to the time of the first picture.
        sample_rate (int): of `wav`.
        out (str or Path): .mp4, .mov or .mkv; it may be the file that is read.
        duration (float or None): seconds of video to keep (the cut falls on a packet: a few pictures more may stay).
    Returns:
        Path: `out`. Pictures in a codec that the container cannot hold are encoded anew.
    """
    source, out = require_file(video_in), Path(out)
    samples = wav.detach().cpu().float().numpy()
    with open_media(source) as container:
        stream = video_stream(container, source)
        try:
            with replaced(out) as temporary, \
                    av.open(str(temporary), 'w', format=container_format(out)) as target:
                copy = target.add_stream_from_template(stream)
                _copy_pictures(container, stream, target, copy, AudioTrack(target, samples, sample_rate), duration)
            return out
        except (av.error.FFmpegError, ValueError):
            pass  # this container does not take the codec
    video = read_video(source, fps=(video_info(source).fps or 25.,), duration=None, audio=False)
    (rate, frames), = video.frames.items()
    frames = frames if duration is None else frames[:max(1, round(duration * rate))]
    return write_video(out, frames, rate, torch.from_numpy(np.atleast_2d(samples)), sample_rate)


def _copy_pictures(container: tp.Any, stream: tp.Any, target: tp.Any, copy: tp.Any, track: AudioTrack,
                   duration: tp.Optional[float]) -> None:
    origin = stream.start_time or 0
    step = max(1, round(1 / (stream.average_rate or 25) / stream.time_base))
    for packet in with_decoding_times(container.demux(stream), step):
        packet.pts = None if packet.pts is None else packet.pts - origin
        packet.dts -= origin
        time = float(packet.dts * packet.time_base)
        if duration is not None and time >= duration:
            break
        packet.stream = copy
        target.mux(packet)
        track.push(max(0., time))
    track.close()
