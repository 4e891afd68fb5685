"""Make example media whose true events are known: to see on a laptop that training learns what it should.

kind video: mp4 files in which objects move and strike something, with `<id>.events.json` and `captions.tsv`.
"""

import argparse
import typing as tp

from ..utils.errors import UserError


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected WIDTHxHEIGHT, for instance 160x120, got {text}') from None


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kind', default='video', help='what to make: video or audio')
    parser.add_argument('--out', required=True, help='folder to make')
    parser.add_argument('--clips', type=int, required=True, help='how many')
    parser.add_argument('--seed', type=int, required=True, help='another seed, other clips')
    parser.add_argument('--seconds', type=float, help='length of a clip (video 4, audio 6 to 20)')
    parser.add_argument('--size', type=_size, default=(160, 120), metavar='WxH', help='of the picture (160x120)')
    parser.add_argument('--fps', type=float, default=25., help='pictures per second (25)')
    parser.add_argument('--workers', type=int, default=2, help='processes (2)')
    return parser


def main(args: argparse.Namespace) -> int:
    """Make them."""
    shared: dict[str, tp.Any] = {'clips': args.clips, 'seed': args.seed, 'workers': args.workers}
    if args.kind == 'video':
        from ..examples.video import make_video_examples
        make_video_examples(args.out, seconds=args.seconds or 4., size=args.size, fps=args.fps, **shared)
    elif args.kind == 'audio':
        from ..examples.audio import make_audio_examples
        lengths: dict[str, tp.Any] = {} if args.seconds is None else {'seconds': (args.seconds, args.seconds)}
        make_audio_examples(args.out, **shared, **lengths)
    else:
        raise UserError(f'--kind {args.kind}: expected video or audio.')
    return 0
