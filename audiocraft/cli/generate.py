"""Generate sound with a trained video-to-audio model: for videos, for a picture, for words alone or with either.

Examples:
  python -m audiocraft generate --xp SIG --video a.mp4 --prompt "a metal plate" --out b.mp4
  python -m audiocraft generate --xp SIG --prompt "rain on a roof" --seconds 4 --samples 3 --out rain.wav
  python -m audiocraft generate --xp //pretrained/mmaudio/large_44k_v2 --video FOLDER --out FOLDER --dtype bfloat16
"""

import argparse
import dataclasses
import logging
import os
import typing as tp
from pathlib import Path

if tp.TYPE_CHECKING:
    import torch

    from ..features.video_to_audio import VideoToAudio

logger = logging.getLogger(__name__)

PICTURE_FPS = 2.
"""Frames per second of the video that is made of one picture."""
OPUS_RATE = 48_000
"""What sound in .webm takes."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    from ..flow.samplers import METHODS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--xp', required=True, metavar='SIG|PATH', help='signature, folder of an XP or a checkpoint, or '
        'published weights (//pretrained/mmaudio/large_44k_v2)')
    add('--video', nargs='+', default=[], metavar='PATH', help='videos, or folders of videos; their sound is not used')
    add('--image', metavar='PATH', help='a picture instead of a video: what is in it counts, and nothing moves')
    add('--prompt', default='', help='what it should sound like')
    add('--negative_prompt', default='', help='what it should not sound like')
    add('--motion_only', '--mask_away_clip', action='store_true',
        help='see how things in the video move, not what they are')
    add('--out', required=True, metavar='PATH', help='file to write: the video (or picture) with the sound, or .wav '
        'or .flac; else a folder, for the sound, the video and what they were made from of each')
    add('--seconds', type=float, help="length (default: the video's, at most the model's; without one the model's)")
    add('--samples', type=int, default=1, help='sounds for each video, numbered NAME_0, NAME_1, ... (1)')
    add('--seed', type=int, default=42, help='of the noise; another seed, another sound (42)')
    add('--steps', type=int, default=25, help='steps of the sampler, where it takes any (25)')
    add('--guidance', type=float, help='guidance scale (that of the training config)')
    add('--method', default='euler', choices=METHODS, help='sampler (euler)')
    add('--codec', help='compression model that decodes (that of the training data)')
    add('--device', default='auto', choices=['auto', 'cpu', 'cuda'], help='where it runs (auto)')
    add('--dtype', default='float32', choices=['float32', 'bfloat16'], help='of the matrices of the network (float32)')
    add('--low_memory', action='store_true', help='extractors, network and codec on the GPU one after another; '
        'slower with several videos')
    return parser


@dataclasses.dataclass
class Job:
    """One thing to make sound for: its video if there is one, and the name of what is written."""
    video: Path | None
    name: str


def main(args: argparse.Namespace) -> int:
    """Generate."""
    from ..features.video_to_audio import VideoToAudio
    from ..utils.errors import UserError
    planned = plan(args)
    several = len(planned) > 1
    jobs = usable(planned, lambda job: check_length(job, args.seconds), several)
    if jobs:
        reference = args.xp if '/' in args.xp or Path(args.xp).exists() else f'//sig/{args.xp}'
        model = VideoToAudio.load(reference, codec=args.codec, device=args.device, dtype=args.dtype,
                                  keep_loaded=not args.low_memory, keys=keys_of(args))
        jobs = usable(jobs, lambda job: run(model, args, job, Path(args.out)), several)
    failed = len(planned) - len(jobs)
    if failed:
        raise UserError(f'{failed} of {len(planned)} videos could not be used; the reasons are above.')
    return 0


def usable(jobs: list[Job], do: tp.Callable[[Job], None], several: bool) -> list[Job]:
    """Do something for each job, and return those whose video could be used; one alone must be."""
    from ..data.media import MediaError
    good = []
    for job in jobs:
        try:
            do(job)
        except MediaError as error:
            if not several:
                raise
            logger.warning('%s; it is left out', error)
        else:
            good.append(job)
    return good


# -- what is asked for -------------------------------------------------------------------------------------------------

def plan(args: argparse.Namespace) -> list[Job]:
    """What to make, after a look at everything that can be wrong with the arguments and the files."""
    from ..data.media import require_file
    from ..utils.errors import UserError
    if args.video and args.image:
        raise UserError('--video and --image: give one of them')
    if args.motion_only and not args.video:
        raise UserError('--motion_only needs a --video')
    if args.seconds is not None and not 0 < args.seconds < float('inf'):
        raise UserError(f'--seconds {args.seconds:g}: expected more than 0, and an end')
    if args.guidance is not None and not abs(args.guidance) < float('inf'):
        raise UserError(f'--guidance {args.guidance:g}: expected a number')
    for name in ('samples', 'steps'):
        if getattr(args, name) < 1:
            raise UserError(f'--{name} {getattr(args, name)}: expected at least 1')
    jobs = [Job(path, path.stem) for path in videos_of(args.video)]
    if not args.video:
        jobs = [Job(None, Path(args.image).stem if args.image else 'sound')]
    if args.image:
        check_image(require_file(args.image))
    check_out(Path(args.out), jobs, pictures=bool(args.video or args.image))
    if not (args.video or args.image or args.prompt):
        logger.info('No --video, --image or --prompt: the sound is whatever the model makes of nothing.')
    return jobs


def videos_of(given: tp.Iterable[str]) -> list[Path]:
    """The videos of files and folders; those of one name are an error, since each names what is written."""
    from ..features.inputs import list_videos
    from ..features.online import IMAGE_SUFFIXES
    from ..utils.errors import UserError
    found: dict[str, Path] = {}
    for entry in given:
        if Path(entry).suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f'--video {entry}: this is a picture, give it as --image')
        for path in ([item.path for item in list_videos(entry)] if Path(entry).is_dir() else [Path(entry)]):
            assert path is not None
            if path.stem in found:
                raise UserError(f'{path} and {found[path.stem]} have the same name, and so would have what is made of '
                                'them: give one at a time')
            found[path.stem] = path
    return list(found.values())


def check_length(job: Job, seconds: float | None) -> None:
    """Look at the header of a video."""
    if job.video is not None:
        seconds_to_use(seconds, job.video, float('inf'))


def check_image(path: Path) -> None:
    """Refuse what is no picture."""
    from ..features.online import IMAGE_SUFFIXES
    from ..utils.errors import UserError
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f'--image {path}: expected a name that ends in one of {" ".join(IMAGE_SUFFIXES)}')


def check_out(out: Path, jobs: list[Job], pictures: bool) -> None:
    """Refuse names that nothing can be written to, before anything is computed."""
    from ..utils.errors import UserError
    if is_folder(out) and out.is_file():
        raise UserError(f'--out {out}: there is a file of this name; expected a folder or a name with a suffix')
    folder = (out if is_folder(out) else out.parent).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f'--out {out}: nothing can be written in {there}')
    if is_folder(out):
        return
    sounds, videos = writable()
    allowed = (*sounds, *videos) if pictures else sounds
    if out.suffix.lower() not in allowed:
        hint = ' (there are no pictures for a video)' if out.suffix.lower() in videos else ''
        raise UserError(f'--out {out}: expected a folder, or a name that ends in one of {" ".join(allowed)}{hint}')
    if len(jobs) > 1:
        raise UserError(f'--out {out}: {len(jobs)} videos need a folder')


def writable() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The suffixes of sounds and of videos that can be written."""
    from ..data.audio import WRITABLE
    from ..data.media import VIDEO_SUFFIXES
    from ..data.muxing import FORMATS
    return tuple(WRITABLE), tuple(suffix for suffix in FORMATS if suffix in VIDEO_SUFFIXES)


def is_folder(out: Path) -> bool:
    """Whether `--out` means a folder: it is one, or has no suffix."""
    return out.is_dir() or not out.suffix


def keys_of(args: argparse.Namespace) -> list[str]:
    """The features that will be made, so that the weights which they take are looked for at once."""
    from ..features.video_to_audio import MOTION, PICTURE, TEXT
    wanted = {PICTURE: (args.video or args.image) and not args.motion_only, MOTION: args.video,
              TEXT: args.prompt or args.negative_prompt}
    return [key for key, given in wanted.items() if given]


def seconds_to_use(wanted: float | None, video: str | Path, longest: float) -> float:
    """How many seconds to generate: what is asked for, else the video's length, up to what the model was trained on."""
    from ..data.media import MediaError
    from ..data.video import video_info
    there = video_info(video).duration
    if wanted is not None and there is not None and wanted > there + 0.05:
        raise MediaError(video, 'too short', f'it lasts {there:.2f} s, --seconds asks for {wanted:g} s')
    return wanted or min(there or longest, longest)


# -- making it ---------------------------------------------------------------------------------------------------------

def run(model: 'VideoToAudio', args: argparse.Namespace, job: Job, out: Path) -> None:
    """Generate and write the samples of one job, and say so."""
    seconds = args.seconds or model.duration
    if job.video is not None:
        seconds = seconds_to_use(args.seconds, job.video, model.duration)
    guidance = model.guidance if args.guidance is None else args.guidance
    wavs = model(job.video, image=args.image, prompt=args.prompt, negative_prompt=args.negative_prompt,
                 seconds=seconds, samples=args.samples, seed=args.seed, steps=args.steps, guidance=guidance,
                 method=args.method, motion_only=args.motion_only)
    how: dict[str, tp.Any] = dict(guidance=guidance, method=args.method)
    if args.method != 'adaptive':
        how['steps'] = args.steps
    for number, wav in enumerate(wavs):
        suffix = f'_{number}' if len(wavs) > 1 else ''
        if is_folder(out):
            path = add_to_folder(out, job, suffix, wav, model.sample_rate, args, sample=number, **how)
        else:
            path = out.with_name(f'{out.stem}{suffix}{out.suffix}')
            write(job.video, args.image, wav, model.sample_rate, path)
        said = dict(seed=args.seed, **({'sample': number} if suffix else {}), **how)
        print(f'{path}: {wav.shape[-1] / model.sample_rate:.2f} s of sound, '
              + ', '.join(f'{key} {value}' for key, value in said.items()))


def add_to_folder(folder: Path, job: Job, suffix: str, wav: 'torch.Tensor', sample_rate: int,
                  args: argparse.Namespace, **how: tp.Any) -> Path:
    """Write the sound, the video with it, and the JSON of what they were made from; return the sound's path."""
    from ..data.samples import Clip, SampleWriter
    name = f'{job.name}{suffix}'
    reference = None if job.video is None else Clip(job.name, wav, sample_rate, media=job.video)
    record = SampleWriter(folder).add(Clip(name, wav, sample_rate, args.prompt), reference=reference, seed=args.seed,
                                      checkpoint=args.xp, negative_prompt=args.negative_prompt, image=args.image,
                                      motion_only=args.motion_only, dtype=args.dtype, **how)
    return record.with_suffix('.wav')


def write(video: Path | None, image: str | None, wav: 'torch.Tensor', sample_rate: int, out: Path) -> None:
    """The sound alone, or the pictures with the sound, as the suffix says."""
    from ..data.audio import WRITABLE, resample, write_audio
    from ..data.video import read_video, remux_audio, write_video
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() in WRITABLE:
        write_audio(out, wav, sample_rate)
        return
    seconds = wav.shape[-1] / sample_rate
    if out.suffix.lower() == '.webm':
        wav, sample_rate = resample(wav, sample_rate, OPUS_RATE), OPUS_RATE
    if video is not None:
        remux_audio(video, wav, sample_rate, out, duration=seconds)
    elif image is not None:
        frame, = read_video(image, fps=(1.,), audio=False).frames[1.][:1]
        frames = frame.expand(max(1, round(seconds * PICTURE_FPS)), *frame.shape)
        write_video(out, frames, PICTURE_FPS, wav, sample_rate)
