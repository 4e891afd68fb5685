"""Give sound to a video file with a trained XP, or make sound for words alone.

The sound is as long as the items that the model was trained on: of a longer video the beginning is used, and a shorter
one is continued by its last picture while the sound is made.
"""

import argparse
import typing as tp
from pathlib import Path

VIDEOS = ('.mp4', '.mov', '.mkv')
SOUNDS = ('.wav', '.flac', '.ogg')


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--xp', required=True, metavar='SIG|PATH', help='signature of a trained XP, or its folder')
    parser.add_argument('--video', help='any video file')
    parser.add_argument('--prompt', default='', help='words that say what is heard')
    parser.add_argument('--out', required=True, help=f'{", ".join(VIDEOS)} (with --video) or {", ".join(SOUNDS)}')
    parser.add_argument('--seed', type=int, default=0, help='another seed, another sound (0)')
    parser.add_argument('--device', default='auto', help='cpu or cuda (auto)')
    return parser


def _check(args: argparse.Namespace) -> Path:
    from ..utils.errors import UserError
    out = Path(args.out)
    suffixes = (*VIDEOS, *SOUNDS) if args.video else SOUNDS
    if out.suffix.lower() not in suffixes:
        raise UserError(f'--out {out}: expected a name that ends in {", ".join(suffixes)}'
                        + ('.' if args.video else ' (a video needs --video).'))
    if not args.video and not args.prompt:
        raise UserError('Give --video, --prompt, or both.')
    if args.video and not Path(args.video).is_file():
        raise UserError(f'--video {args.video}: there is no such file.')
    return out


def load_solver(xp: str, device: str) -> tp.Any:
    """The solver of an XP, by signature or folder, with its newest checkpoint."""
    from ..environment import xp_folder
    from ..solvers.generation import GenerationSolver
    from ..train import get_solver_from_sig
    from ..train import main as train
    from ..utils.errors import UserError
    given = Path(xp)
    folder = given.resolve() if given.is_dir() else xp_folder(xp.removeprefix('//sig/').strip('/'))
    # The folder may belong to another dora_dir than ours: <dora_dir>/xps/<sig>.
    train.dora.dir = folder.parent.parent
    solver = get_solver_from_sig(folder.name, {'execute_only': 'generate', 'device': device})
    if not isinstance(solver, GenerationSolver):
        raise UserError(f'{folder}: a {type(solver).__name__} does not generate sound from video or text.')
    return solver


def read_pictures(solver: tp.Any, path: str) -> tuple[tp.Any, float]:
    """The pictures that the extractors want, and how many seconds of them are real."""
    from ..data.media import MediaError
    from ..data.video import read_video
    try:
        return solver.online.read(path), solver.duration
    except MediaError as error:
        if error.reason != 'too short':
            raise
    rates = tuple(extractor.fps for extractor in solver.online.extractors if extractor.fps)
    video = read_video(path, fps=rates, audio=False)
    for fps, frames in video.frames.items():
        missing = round(solver.duration * fps) - len(frames)
        video.frames[fps] = frames[[*range(len(frames)), *[-1] * max(0, missing)]]
    return video, video.duration


def make_batch(solver: tp.Any, video: tp.Any, prompt: str) -> tp.Any:
    """A batch of one item; what the model knows and the item has not is left empty."""
    import torch

    from ..data.store_dataset import Batch
    from ..features.controls import Conditions
    tensors = solver.online([Conditions(id='generated', video=video, caption=prompt, caption_of='generated')])
    rows = {}
    for key, (shape, _) in solver.data.keys.items():
        if key not in tensors:
            tensors[key] = torch.zeros(0, *shape, device=solver.device)
            rows[key] = torch.zeros(0, dtype=torch.long, device=solver.device)
    return Batch(['generated'], [prompt], tensors, rows)


def main(args: argparse.Namespace) -> int:
    """Generate, and write the file."""
    out = _check(args)
    # Torch and all that comes with it, once the arguments are known to be right.
    from ..data.audio import write_audio
    from ..data.video import remux_audio
    solver = load_solver(args.xp, args.device)
    solver.seed = args.seed
    video, seconds = read_pictures(solver, args.video) if args.video else (None, solver.duration)
    with solver.swap_best_state():
        (clip,) = solver.generated_clips([make_batch(solver, video, args.prompt)])
    wav = clip.audio[:, :round(seconds * clip.sample_rate)]
    if out.suffix.lower() in VIDEOS:
        remux_audio(args.video, wav, clip.sample_rate, out, duration=seconds)
    else:
        write_audio(out, wav, clip.sample_rate)
    print(f'{out}: {wav.shape[1] / clip.sample_rate:.1f} s of sound, seed {args.seed}, {solver.checkpoint_name}')
    return 0
