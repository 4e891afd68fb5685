"""The main job from end to end: example videos, codec, store, video-to-audio model, scores, page.

Every step is an ordinary command, printed before it runs; the README shows how to run them on your own videos.
`--short` runs the same steps small, without the thresholds. A step that is already done only reports.
"""

import argparse
import json
import os
import subprocess as sp
import sys
import time
from pathlib import Path

DATA = 'data/example'
SPLITS = {'train': (1000, 1), 'valid': (32, 2), 'test': (32, 3)}  # clips, seed
SHORT_SPLITS = {'train': (64, 1), 'valid': (8, 2), 'test': (8, 3)}
CODEC = ['solver=compression/mel_vae_debug']
MODEL = ['solver=mmaudio/debug']
SHORT_CODEC = ['optim.epochs=2', 'optim.updates_per_epoch=60']
SHORT_MODEL = ['optim.epochs=2', 'optim.updates_per_epoch=40', 'sampling.steps=4']
THRESHOLDS = {'onset_f1': (0.90, 'at least'), 'onset_f1_wrong_video': (0.20, 'at most'),
              'frozen/onset_f1': (0.20, 'at most'), 'shifted/onset_f1': (0.20, 'at most'),
              'kind_accuracy': (0.95, 'at least'), 'neutral_caption/kind_accuracy': (0.95, 'at least')}


class Steps:
    """Runs commands one after another, keeps their seconds, stops at the first that fails."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        installed = Path('.venv/install-seconds')
        if installed.exists():
            self.rows.append(('install', float(installed.read_text())))

    def run(self, name: str, *args: str) -> None:
        print(f'\n[{name}] python -m audiocraft {" ".join(args)}', flush=True)
        start = time.time()
        status = sp.run([sys.executable, '-m', 'audiocraft', *args]).returncode
        self.rows.append((name, time.time() - start))
        if status:
            sys.exit(f'quickstart: step "{name}" failed (exit {status}); after mending, the same command goes on from here')


def signature(*overrides: str) -> str:
    out = sp.run([sys.executable, '-m', 'audiocraft', 'sig', *overrides], capture_output=True, text=True, check=True)
    return out.stdout.strip()


def run_steps(steps: Steps, short: bool) -> tuple[str, str]:
    """All steps; returns the signatures of the codec and of the model."""
    codec, model = CODEC + SHORT_CODEC * short, MODEL + SHORT_MODEL * short
    for split, (clips, seed) in (SHORT_SPLITS if short else SPLITS).items():
        steps.run(f'make {split} videos', 'make_example', '--kind', 'video', '--out', f'{DATA}/{split}',
                  '--clips', str(clips), '--seed', str(seed))
    steps.run('train the codec', 'run', *codec)
    codec_sig = signature(*codec)
    for split in SPLITS:
        steps.run(f'extract {split}', 'extract', '--data_dir', f'{DATA}/{split}', '--captions_tsv',
                  f'{DATA}/{split}/captions.tsv', '--output_dir', f'{DATA}/stores/{split}', '--codec', f'//sig/{codec_sig}')
    steps.run('train video-to-audio', 'run', *model)
    model_sig = signature(*model)
    video = sorted(Path(f'{DATA}/test').glob('*.mp4'))[0]
    steps.run('sound for one video', 'generate', '--xp', model_sig, '--video', str(video), '--out', f'{DATA}/generated.mp4')
    return codec_sig, model_sig


def report(steps: Steps, folder: Path, check: bool) -> bool:
    """Prints the table, the scores and the page; True if every threshold is met (or none is asked for)."""
    from audiocraft.pages.table import format_table
    total = sum(seconds for _, seconds in steps.rows)
    print('\n' + format_table([(name, f'{s:.1f}') for name, s in [*steps.rows, ('total', total)]], ['step', 'seconds']))
    results = json.loads(max((folder / 'evaluate').glob('*.json'), key=lambda p: int(p.stem)).read_text())
    rows, good = [], True
    for key, value in results.items():
        bound, word = THRESHOLDS.get(key, (None, '')) if check else (None, '')
        met = '' if bound is None else 'ok' if value is not None and (value >= bound) == (word == 'at least') else 'MISSED'
        good &= met != 'MISSED'
        shown = f'{value:.3f}' if isinstance(value, float) else str(value)
        rows.append((key, shown, '' if bound is None else f'{word} {bound:.2f}', met))
    print('\n' + format_table(rows, ['metric', 'value', 'target', '']))
    print(f'\nPage: {folder / "samples" / "index.html"}')
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--short', action='store_true', help='the same steps, small, without the thresholds')
    args = parser.parse_args()
    os.environ.setdefault('AUDIOCRAFT_DORA_DIR', str(Path('outputs/dora').resolve()))
    steps = Steps()
    _, model_sig = run_steps(steps, args.short)
    folder = Path(os.environ['AUDIOCRAFT_DORA_DIR']) / 'xps' / model_sig
    if not report(steps, folder, check=not args.short):
        sys.exit('quickstart: a target was missed (see the table)')


if __name__ == '__main__':
    main()
