"""The main job from end to end: example videos, codec, store, video-to-audio model, scores, page.

Every step is an ordinary command, printed before it runs; the README shows how to run them on your own videos.
`--short` runs the same steps small, without the thresholds. A step that is already done only reports.
"""

import argparse
import dataclasses
import json
import os
import subprocess as sp
import sys
import time
import typing as tp
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything: clips and seed of each part, overrides of the two trainings."""
    root: str
    parts: dict[str, tuple[int, int]]
    codec: list[str]
    model: list[str]


FULL = Plan('data/example', {'train': (1000, 1), 'valid': (32, 2), 'test': (32, 3)},
            ['solver=compression/mel_vae_debug'], ['solver=mmaudio/debug'])
SHORT = Plan('data/example_short', {'train': (64, 1), 'valid': (8, 2), 'test': (8, 3)},
             [*FULL.codec, 'dset.root=data/example_short', 'optim.epochs=1', 'optim.updates_per_epoch=60'],
             [*FULL.model, 'dset.root=data/example_short', 'optim.epochs=2', 'optim.updates_per_epoch=15',
              'schedule.warmup=5', 'sampling.steps=4'])

# Metric -> bound, and on which side of it the full run must be.
TARGETS = {'onset_f1': (0.90, 'at least'), 'of_ceiling': (0.95, 'at least'), 'onset_f1_wrong_video': (0.20, 'at most'),
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
        """Run `python -m audiocraft ARGS`; ends the quickstart when it fails."""
        print(f'\n[{name}] python -m audiocraft {" ".join(args)}', flush=True)
        start = time.time()
        status = sp.run([sys.executable, '-m', 'audiocraft', *args]).returncode
        self.rows.append((name, time.time() - start))
        if status:
            sys.exit(f'quickstart: the step "{name}" failed (exit {status}). '
                     'Once that is mended, the same command goes on from here.')


def free_share(seconds: float = 1.) -> float:
    """How much of all cores was idle just now, 0 to 1; 1 where the system does not say."""
    def counters() -> tuple[int, int]:
        values = [int(x) for x in Path('/proc/stat').read_text().split('\n')[0].split()[1:9]]
        return values[3] + values[4], sum(values)
    if not Path('/proc/stat').exists():
        return 1.
    before = counters()
    time.sleep(seconds)
    idle, total = (b - a for a, b in zip(before, counters()))
    return idle / total if total else 1.


def thread_overrides() -> list[str]:
    """One thread where other programs hold the cores: waiting for one of them holds up all threads at every layer.

    With a core taken, two threads were 2.5 times slower than one here. Not part of a signature.
    """
    return [] if free_share() > 0.75 else ['num_threads=1']


def signature(overrides: list[str]) -> str:
    """The signature of the XP that these overrides describe."""
    command = [sys.executable, '-m', 'audiocraft', 'sig', *overrides]
    return sp.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_steps(steps: Steps, plan: Plan) -> str:
    """All steps; returns the signature of the video-to-audio model."""
    root = plan.root
    for part, (clips, seed) in plan.parts.items():
        steps.run(f'make {part} videos', 'make_example', '--kind', 'video', '--out', f'{root}/{part}',
                  '--clips', str(clips), '--seed', str(seed))
    steps.run('train the codec', 'run', *plan.codec, *thread_overrides())
    codec = signature(plan.codec)
    for part in plan.parts:
        steps.run(f'extract {part}', 'extract', '--data_dir', f'{root}/{part}',
                  '--captions_tsv', f'{root}/{part}/captions.tsv', '--output_dir', f'{root}/stores/{part}',
                  '--codec', f'//sig/{codec}')
    steps.run('train video to audio, evaluate, generate', 'run', *plan.model, *thread_overrides())
    model = signature(plan.model)
    steps.run('sound for one video', 'generate', '--xp', model, '--video', f'{root}/test/clip_00000.mp4',
              '--out', f'{root}/generated.mp4')
    return model


def verdict(key: str, value: tp.Any, check: bool) -> tuple[str, str]:
    """The target of a metric and whether it is met, in words; empty where there is none."""
    if not check or key not in TARGETS:
        return '', ''
    bound, side = TARGETS[key]
    met = value is not None and (value >= bound if side == 'at least' else value <= bound)
    return f'{side} {bound:.2f}', 'ok' if met else 'MISSED'


def report(steps: Steps, folder: Path, check: bool) -> bool:
    """Prints the table, the scores and the page; True if no target is missed."""
    from audiocraft.pages.table import format_table
    total = sum(seconds for _, seconds in steps.rows)
    print('\n' + format_table([(name, f'{s:.1f}') for name, s in [*steps.rows, ('total', total)]], ['step', 'seconds']))
    newest = max((folder / 'evaluate').glob('*.json'), key=lambda path: int(path.stem))
    results = json.loads(newest.read_text())
    results = results.get('metrics', results)
    if results.get('onset_f1') is not None and results.get('ceiling/onset_f1'):
        results['of_ceiling'] = results['onset_f1'] / results['ceiling/onset_f1']
    rows = [(key, f'{value:.3f}' if isinstance(value, float) else str(value), *verdict(key, value, check))
            for key, value in results.items()]
    print('\n' + format_table(rows, ['metric', 'value', 'target', '']))
    print(f'\nPage: {folder / "samples" / "index.html"}')
    return all(row[-1] != 'MISSED' for row in rows)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--short', action='store_true', help='the same steps, small, without the targets')
    args = parser.parse_args()
    # Beside the data rather than in the team's folder, so that one checkout never meets the XPs of another.
    if not os.environ.get('AUDIOCRAFT_DORA_DIR'):  # empty is the same as absent
        os.environ['AUDIOCRAFT_DORA_DIR'] = str(Path('outputs').resolve())
    steps = Steps()
    model = run_steps(steps, SHORT if args.short else FULL)
    folder = Path(os.environ['AUDIOCRAFT_DORA_DIR']) / 'xps' / model
    if not report(steps, folder, check=not args.short):
        sys.exit('quickstart: a target was missed (see the table).')


if __name__ == '__main__':
    main()
