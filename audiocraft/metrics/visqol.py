"""ViSQOL, an estimate of what listeners would say, by Google's program of that name when it is installed."""

import csv
import functools
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import typing as tp
from pathlib import Path

from ..data.audio import write_audio
from ..data.samples import Clip
from .base import Metric, References, Results, unavailable
from .pairs import NO_PAIRS, aligned

logger = logging.getLogger(__name__)

SAMPLE_RATES = {'audio': 48_000, 'speech': 16_000}
TOLD_LINES = 5  # of the program's output, when it fails


class VisqolError(RuntimeError):
    """The program did not give results; says why, with the last lines of its output."""


def find_visqol(bin: str | Path | None = None) -> Path | None:
    """The program: `bin`, else `$VISQOL`, else `visqol` in `$PATH`; None if it is not there.

    Either may also name the folder in which it was built, which has it as `bazel-bin/visqol`.
    """
    given = bin or os.environ.get('VISQOL')
    if not given:
        found = shutil.which('visqol')
        return Path(found) if found else None
    path = Path(given).expanduser()
    candidates = [path / 'bazel-bin' / 'visqol', path / 'visqol', path]
    return next((one for one in candidates if one.is_file() and os.access(one, os.X_OK)), None)


def why_missing(bin: str | Path | None = None) -> str:
    """What to do when `find_visqol` finds nothing."""
    if given := bin or os.environ.get('VISQOL'):
        return f'there is no program at {given}, and none in bazel-bin/ there'
    return ('the program visqol is not installed: build https://github.com/google/visqol, and name its folder in '
            '$VISQOL, or as `evaluate.metrics.visqol.bin`')


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning('No ViSQOL scores: %s', reason)


def models_root(program: Path) -> Path | None:
    """The folder that holds the program's `model/`, where it looks for its models when run from there."""
    parents = [*program.absolute().parents, *program.resolve().parents]
    return next((folder for folder in parents if (folder / 'model').is_dir()), None)


class Visqol(Metric):
    """Mean opinion scores by ViSQOL (Chinen et al. 2020, arXiv:2004.09584), from 1 to 5: more is better.

    Gives `visqol`, the mean over clips, and `visqol_n`, the number of clips that the program scored.

    Args:
        bin (str or None): see `find_visqol`.
        mode (str): 'audio' (at 48 kHz) or 'speech' (at 16 kHz).
        timeout (float): seconds that the program may take for each clip.
        arguments (list of str): further arguments of the program, such as `--similarity_to_quality_model FILE`.
    """

    def __init__(self, *, bin: str | None = None, mode: str = 'audio', timeout: float = 60.,
                 arguments: tp.Sequence[str] = ()):
        if mode not in SAMPLE_RATES:
            raise ValueError(f"mode must be 'audio' or 'speech', got {mode!r}")
        self.program, self.mode, self.timeout, self.arguments = find_visqol(bin), mode, timeout, list(arguments)
        self.missing = '' if self.program else why_missing(bin)
        if self.missing:
            _warn_once(self.missing)
        self.reset()

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.folder: tempfile.TemporaryDirectory | None = None  # removes itself when it is let go
        self.count = 0

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`. The pairs are written to a temporary folder, which `compute` hands to the program."""
        if self.program is None:
            return
        self.folder = self.folder or tempfile.TemporaryDirectory(prefix='visqol-')
        for ours, theirs, rate in aligned(generated, reference, sample_rate=SAMPLE_RATES[self.mode]):
            for wav, path in zip((theirs, ours), pair_paths(Path(self.folder.name), self.count)):
                write_audio(path, wav.nan_to_num(posinf=1., neginf=-1.), rate)
            self.count += 1

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if self.program is None:
            return unavailable('visqol', self.missing)
        if self.folder is None or not self.count:
            return unavailable('visqol', NO_PAIRS)
        try:
            scores = self._run(self.program, Path(self.folder.name))
        except VisqolError as error:
            logger.warning('No ViSQOL scores: %s', error)
            return unavailable('visqol', str(error))
        if len(scores) < self.count:
            logger.warning('ViSQOL scored %d of %d clips', len(scores), self.count)
        return {'visqol': sum(scores) / len(scores), 'visqol_n': float(len(scores))}

    def _run(self, program: Path, folder: Path) -> list[float]:
        """Score all pairs of the folder in one run; VisqolError when it fails, takes too long, or scores nothing."""
        batch, results, log = folder / 'batch.csv', folder / 'results.csv', folder / 'log.txt'
        with open(batch, 'w', newline='', encoding='utf-8') as file:
            rows = csv.writer(file)
            rows.writerow(['reference', 'degraded'])
            rows.writerows(pair_paths(folder, index) for index in range(self.count))
        results.unlink(missing_ok=True)
        command = [str(program.absolute()), '--batch_input_csv', str(batch), '--results_csv', str(results),
                   *(['--use_speech_mode'] if self.mode == 'speech' else []), *self.arguments]
        code = run_program(command, log, timeout=self.timeout * self.count, cwd=models_root(program))
        told = _last_lines(log)
        if code is None:
            raise VisqolError(f'{program} took more than {self.timeout * self.count:g} s for {self.count} clips{told}')
        if code != 0:
            raise VisqolError(f'{program} ended with {code}{told}')
        scores = read_scores(results)
        if not scores:
            raise VisqolError(f'{program} wrote no scores{told}')
        return scores


def pair_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Files of the true and of the generated sound of a pair."""
    return folder / f'{index}.reference.wav', folder / f'{index}.degraded.wav'


def run_program(command: list[str], log: Path, *, timeout: float, cwd: Path | None) -> int | None:
    """Run a program, its output in a file; returns its exit status, or None when it was ended for taking too long."""
    with open(log, 'wb') as output:
        try:
            # In a session of its own, so that what the program itself has started can be ended with it.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       cwd=cwd, start_new_session=True)
        except OSError as error:
            raise VisqolError(f'{command[0]} cannot be run: {error}') from error
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a program that still runs, and what it has started."""
    if process.poll() is None:
        if hasattr(os, 'killpg'):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def read_scores(results: Path) -> list[float]:
    """The finite scores (column `moslqo`) of a file of results; none when there is no such file or column."""
    if not results.is_file():
        return []
    with open(results, newline='', encoding='utf-8', errors='replace') as file:
        cells = [row.get('moslqo') or 'nan' for row in csv.DictReader(file)]
    scores = [_number(cell) for cell in cells]
    return [score for score in scores if score is not None]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float('inf') else None


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    return ': ' + ' | '.join(lines[-TOLD_LINES:]) if lines else ''
