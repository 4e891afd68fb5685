"""What an XP folder holds, read without any solver.

Everything is optional: a folder of a run that was killed, or that has not come to `generate` yet, is read as far as
it goes. A file that cannot be read is named in `Results.notes` and does not stop the page.
"""

import dataclasses
import json
import math
import re
import typing as tp
from pathlib import Path

import yaml

from ..data.samples import read_events
from ..utils.errors import UserError

Metrics = dict[str, tp.Any]
History = list[dict[str, Metrics]]
SECRET = re.compile(r'^(\s*[\w.-]*(?:token|secret|password|api_?key)[\w.-]*\s*:)\s*\S.*$', re.IGNORECASE | re.MULTILINE)
# Bookkeeping in evaluate/<update>.json and in the stages of the history: no measures.
NOT_METRICS = {'update', 'updates', 'epoch', 'checkpoint', 'duration', 'seconds', 'seed', 'signature'}


@dataclasses.dataclass
class ClipResult:
    """One generated clip.

    Args:
        id (str): id of the item, any characters.
        media (Path): `.mp4` when there is one, else `.wav`.
        audio (Path): the `.wav`, or `media`.
        prompt (str): the caption it was made from.
        label (str): what the generated sound is called, or ''.
        reference (Path or None): truth media, if it is there.
        start (float): where the clip begins in the truth, in seconds.
        duration (float or None): seconds that were generated.
        events (list or None): `{'time': seconds, 'kind': str}` of the truth, from `start`.
        details (dict): what else the JSON says (seed, checkpoint, conditions, ...).
        scores (dict): measures of this clip.
    """
    id: str
    media: Path
    audio: Path
    prompt: str = ''
    label: str = ''
    reference: Path | None = None
    start: float = 0.
    duration: float | None = None
    events: list[dict[str, tp.Any]] | None = None
    details: Metrics = dataclasses.field(default_factory=dict)
    scores: Metrics = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Results:
    """All that a page shows of one XP."""
    folder: Path
    history: History = dataclasses.field(default_factory=list)
    overrides: list[str] = dataclasses.field(default_factory=list)
    config: str | None = None
    update: int | None = None  # of the samples
    clips: list[ClipResult] = dataclasses.field(default_factory=list)
    evaluated: int | str | None = None  # update of the metrics, when known
    metrics: Metrics = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def read_results(folder: Path) -> Results:
    """Read `folder`: the newest samples and evaluation, the history, the overrides and the configuration."""
    results = Results(folder)
    history = _read_json(folder / 'history.json', results.notes)
    results.history = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    results.overrides = _read_overrides(folder, results.notes)
    results.config = _read_config(folder)
    _read_evaluation(results)
    _read_clips(results)
    return results


def numbered(folder: Path) -> list[Path]:
    """Entries of `folder` that are named by an update (`1200`, `1200.json`), oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.stem.isdigit()), key=lambda path: int(path.stem))


def is_number(value: tp.Any) -> tp.TypeGuard[float]:
    """Whether `value` is a finite number (booleans are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path, notes: list[str]) -> tp.Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        notes.append(f'{path.name} could not be read: {error}')
        return None


def _read_overrides(folder: Path, notes: list[str]) -> list[str]:
    argv = _read_json(folder / '.argv.json', notes)
    path = folder / '.hydra' / 'overrides.yaml'
    if argv is None and path.exists():
        try:
            argv = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, ValueError, yaml.YAMLError) as error:
            notes.append(f'{path.name} could not be read: {error}')
    return [str(item) for item in argv] if isinstance(argv, list) else []


def _read_config(folder: Path) -> str | None:
    paths = [path / 'config.yaml' for path in reversed(numbered(folder / 'checkpoints'))]
    for path in [*paths, folder / '.hydra' / 'config.yaml']:
        if path.is_file():
            return SECRET.sub(r'\1 (hidden)', path.read_text(encoding='utf-8', errors='replace'))
    return None


def _read_evaluation(results: Results) -> None:
    """Newest readable `evaluate/<update>.json`, else the last `evaluate` of the history; fills holes of the history."""
    for path in reversed(numbered(results.folder / 'evaluate')):
        content = _read_json(path, results.notes) if path.suffix == '.json' else None
        if isinstance(content, dict):
            metrics = content.get('metrics')
            results.metrics = _only_metrics(metrics if isinstance(metrics, dict) else content)
            results.evaluated = int(path.stem)
            break
    else:
        for entry in reversed(results.history):
            if isinstance(entry.get('evaluate'), dict):
                results.metrics = _only_metrics(entry['evaluate'])
                break
    if results.metrics and results.history and not any('evaluate' in entry for entry in results.history):
        results.history[-1] = {**results.history[-1], 'evaluate': results.metrics}


def _only_metrics(content: Metrics) -> Metrics:
    return {name: value for name, value in content.items()
            if name not in NOT_METRICS and (value is None or isinstance(value, (int, float, str)))}


def _read_clips(results: Results) -> None:
    for folder in reversed(numbered(results.folder / 'generate')):
        if not folder.is_dir():
            continue
        found = [_read_clip(path, results) for path in sorted(folder.rglob('*.json'))]
        results.clips = [clip for clip in found if clip is not None]
        if results.clips:
            results.update = int(folder.name)
            return


def _read_clip(path: Path, results: Results) -> ClipResult | None:
    content = _read_json(path, results.notes)
    media = [path.with_suffix(suffix) for suffix in ('.mp4', '.webm', '.wav', '.flac')]
    media = [candidate for candidate in media if candidate.is_file()]
    if not isinstance(content, dict) or not media:
        return None
    content = dict(content)
    clip = ClipResult(str(content.pop('id', path.stem)), media[0], media[-1])
    prompt, caption = content.pop('prompt', None), content.pop('caption', None)
    clip.prompt = str(prompt or caption or '')
    clip.label = str(content.pop('label', None) or '')
    clip.start = _number(content.pop('start', None)) or 0.
    clip.duration = _number(content.pop('duration', None))
    scores = content.pop('scores', None)
    clip.scores = scores if isinstance(scores, dict) else {}
    clip.reference = _find_reference(content.pop('reference', None), path, results)
    clip.events = _read_events(content.pop('events', None), clip, results)
    clip.details = content
    return clip


def _number(value: tp.Any) -> float | None:
    return float(value) if is_number(value) else None


def _find_reference(value: tp.Any, path: Path, results: Results) -> Path | None:
    """Truth media: absolute, or relative to the JSON, the XP folder, or the current folder."""
    if not isinstance(value, str) or not value:
        return None
    for root in (path.parent, results.folder, Path.cwd()):
        if (root / value).is_file():
            return root / value
    results.notes.append(f'The truth {value} is not there any more.')
    return None


def _read_events(events: tp.Any, clip: ClipResult, results: Results) -> list[dict[str, tp.Any]] | None:
    """Events of the JSON, else those beside the truth, whose times count from the start of the media."""
    start = 0.
    try:
        if events is None and clip.reference is not None:
            events, start = read_events(clip.reference.parent, clip.reference.stem), clip.start
    except UserError as error:
        results.notes.append(str(error))
    if not isinstance(events, list):
        return None
    return [{**event, 'time': event['time'] - start} for event in events
            if isinstance(event, dict) and is_number(event.get('time'))]
