"""Generate sound for a video with a trained model, and write the video with it.

Example: `python -m audiocraft generate --xp SIG --video a.mp4 --prompt "a metal plate" --out b.mp4`
"""

import argparse
import typing as tp


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--xp', required=True, metavar='SIG|PATH', help='signature, folder of an XP, or a checkpoint')
    parser.add_argument('--video', required=True, help='any video; its own sound is not used')
    parser.add_argument('--prompt', default='', help='what it should sound like')
    parser.add_argument('--negative_prompt', default='', help='what it should not sound like')
    parser.add_argument('--out', required=True, help='file to write: the video with the sound, or .wav or .flac')
    parser.add_argument('--seconds', type=float, help="seconds of the video to use (its length, at most the model's)")
    parser.add_argument('--seed', type=int, default=42, help='of the noise; another seed, another sound (42)')
    parser.add_argument('--steps', type=int, default=25, help='steps of the sampler (25)')
    parser.add_argument('--guidance', type=float, help='guidance scale (that of the training config)')
    parser.add_argument('--method', default='euler', choices=['euler', 'midpoint', 'adaptive'], help='sampler (euler)')
    parser.add_argument('--codec', help='compression model that decodes (that of the training data)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda'], help='where it runs (auto)')
    return parser


def seconds_to_use(wanted: float | None, video: str, longest: float) -> float:
    """How many seconds to generate: what is asked for, else the video's length, up to what the model was trained on."""
    from ..data.media import MediaError
    from ..data.video import video_info
    from ..utils.errors import UserError
    if wanted is not None and wanted <= 0:
        raise UserError(f'--seconds {wanted:g}: expected more than 0')
    there = video_info(video).duration
    if wanted is not None and there is not None and wanted > there + 0.05:
        raise MediaError(video, 'too short', f'it lasts {there:.2f} s, --seconds asks for {wanted:g} s')
    return wanted or min(there or longest, longest)


def main(args: argparse.Namespace) -> int:
    """Generate."""
    from pathlib import Path

    from ..data.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES, require_file
    from ..environment import resolve_path
    from ..features.video_to_audio import VideoToAudio
    from ..utils.errors import UserError
    video, out = require_file(args.video), Path(args.out)
    if out.suffix.lower() not in VIDEO_SUFFIXES + AUDIO_SUFFIXES:
        raise UserError(f'--out {out}: expected a name that ends in one of {" ".join(VIDEO_SUFFIXES + AUDIO_SUFFIXES)}')
    reference = args.xp if '/' in args.xp or Path(args.xp).exists() else f'//sig/{args.xp}'
    resolve_path(reference)
    model = VideoToAudio.load(reference, codec=args.codec, device=args.device)
    wav = model(video, prompt=args.prompt, negative_prompt=args.negative_prompt, seed=args.seed, steps=args.steps,
                guidance=args.guidance, method=args.method,
                seconds=seconds_to_use(args.seconds, args.video, model.duration))
    write(video, wav, model.sample_rate, out)
    print(f'{out}: {wav.shape[-1] / model.sample_rate:.2f} s of sound, seed {args.seed}')
    return 0


def write(video: tp.Any, wav: tp.Any, sample_rate: int, out: tp.Any) -> None:
    """The sound alone for .wav and .flac, else the pictures of the video with the sound."""
    from ..data.audio import write_audio
    from ..data.media import VIDEO_SUFFIXES
    from ..data.video import remux_audio
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() in VIDEO_SUFFIXES:
        remux_audio(video, wav, sample_rate, out, duration=wav.shape[-1] / sample_rate)
    else:
        write_audio(out, wav, sample_rate)
