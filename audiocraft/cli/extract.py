"""Make a store of media and captions: latents and features, one row per item; go on where it was stopped.

A folder of videos; with --clips_tsv, clips of audio files; with --manifest or --config audio_codes, windows of audio
files. --config video_mmaudio_16k|44k and audio_mmaudio_16k|44k make what MMAudio is trained on, of what --captions_tsv
lists (`captions` writes such tables). `torchrun --nproc_per_node=N scripts/extract.py ...` shares the work between N
processes. Every key of config/extract/*.yaml can be given as KEY=VALUE.
"""

import argparse
import typing as tp

PATHS = ('data_dir', 'output_dir', 'captions_tsv', 'clips_tsv', 'manifest', 'latent_dir')
# Flags that stand for a key of the config.
SHORTCUTS = ('codec', 'duration', 'sample_rate', 'batch_size', 'num_workers', 'device')


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_dir', help='folder of the media; file names without suffix are the ids')
    parser.add_argument('--manifest', help='instead of --data_dir: audio files in .jsonl, .jsonl.gz or a table (path)')
    parser.add_argument('--output_dir', required=True, metavar='D', help='the store: D/, D.tsv and D.facts.json')
    parser.add_argument('--captions_tsv', help='table (tabs or commas) with id and caption (or label)')
    parser.add_argument('--clips_tsv', help='table of clips of audio files (partition_clips): audio, no video')
    parser.add_argument('--latent_dir', help='folder for what a resumed extraction needs; may be deleted later')
    parser.add_argument('--config', help='yaml of config/extract (video_tiny; with --clips_tsv audio_tiny; '
                                         'with --manifest audio_codes)')
    parser.add_argument('--codec', help='compression model: //sig/SIG, the folder of an XP, a checkpoint, or '
                                        '//pretrained/NAME')
    parser.add_argument('--duration', type=float, help='seconds of an item')
    parser.add_argument('--sample_rate', type=int, help='16000 or 44100: must be that of the codec')
    parser.add_argument('--batch_size', type=int, help='items per pass through the models')
    parser.add_argument('--num_workers', type=int, help='threads that decode')
    parser.add_argument('--device', help='where the models run: cpu, cuda or auto')
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='other keys, e.g. extractors.motion.fps=25')
    return parser


def read_config(name: str, overrides: tp.Sequence[str]) -> dict[str, tp.Any]:
    """The plain config of `config/extract/<name>.yaml`. Raises `UserError` for a wrong name or key."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ..dora_compat import searchpath
    from ..environment import CONFIG_ROOT, config_folders
    from ..utils import overrides as overrides_
    from ..utils.config import flatten, to_plain
    from ..utils.errors import UserError
    choices = overrides_.config_choices(config_folders(), 'extract')
    if name not in choices:
        raise UserError(overrides_.unknown_choice('extract config', name, choices))

    def composed(values: tp.Sequence[str]) -> dict[str, tp.Any]:
        with initialize_config_dir(str(CONFIG_ROOT), version_base='1.3'):
            # Not as the primary config: that is looked for in our folder only, not in the user's.
            return to_plain(compose(overrides=[f'+extract={name}', *values, *searchpath()]))
    try:
        return composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(overrides_.explain(error, overrides, [], config_folders(),
                                           lambda: list(flatten(composed([]))))) from error


def main(args: argparse.Namespace) -> int:
    """Extract."""
    import json

    from ..environment import resolve_path
    from ..features.extract import extract
    from ..utils.errors import UserError
    given = {name: getattr(args, name) for name in SHORTCUTS if getattr(args, name) is not None}
    shortcuts = [f'{name}={json.dumps(value)}' for name, value in given.items()]
    name = args.config or ('audio_codes' if args.manifest else 'audio_tiny' if args.clips_tsv else 'video_tiny')
    cfg = read_config(name, [*shortcuts, *args.overrides])
    if not cfg.get('codec'):
        raise UserError('Which compression model? Give --codec //sig/SIG, the folder of its XP, or a checkpoint '
                        '(`dora run solver=compression/mel_vae_debug` trains one).')
    paths: dict[str, tp.Any] = {path: resolve_path(getattr(args, path)) for path in PATHS if getattr(args, path)}
    extract(**paths, **cfg)
    return 0
