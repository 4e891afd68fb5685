"""The folder of a set of examples: what it was made with, and its tables."""

import json
import logging
import typing as tp
from pathlib import Path

from ..data.manifest import write_table
from ..utils.errors import UserError
from ..utils.files import write_atomic

logger = logging.getLogger(__name__)
FACTS = 'example.json'


def open_folder(out: tp.Union[str, Path], *, clips: int, workers: int, **facts: tp.Any) -> tuple[Path, int]:
    """Make the folder of a set, or take up one made with the same `facts`; return it and how many clips it is to hold.

    A folder that holds more clips than asked keeps them: clip i does not depend on how many there are.
    """
    out = Path(out)
    if clips < 1:
        raise UserError(f'clips must be at least 1, got {clips}')
    if workers < 1:
        raise UserError(f'workers must be at least 1, got {workers}')
    if facts['seed'] < 0:
        raise UserError(f'seed must not be negative, got {facts["seed"]}')
    if out.exists() and not out.is_dir():
        raise UserError(f'{out} is a file: give a folder for the examples')
    marker = out / FACTS
    if marker.exists():
        before = _read_facts(marker)
        held = before.pop('clips', 0)
        if before != facts:
            other = ', '.join(f'{key} {before.get(key)!r} (now {facts.get(key)!r})'
                              for key in sorted({*before, *facts}) if before.get(key) != facts.get(key))
            raise UserError(f'{out} holds examples made otherwise: {other}; choose another folder or delete it')
        if held > clips:
            logger.info('%s already holds %d clips and keeps them (%d asked for)', out, held, clips)
        clips = max(held, clips)
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f'{out} is not empty and not a folder of examples: give a new folder')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {out}: {error.strerror}') from error
    write_atomic(marker, json.dumps({**facts, 'clips': clips}, indent=2) + '\n')
    return out, clips


def _read_facts(path: Path) -> dict[str, tp.Any]:
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): delete the folder and make the examples again') from error


def write_captions(out: Path, captions: tp.Mapping[str, str]) -> None:
    """Write `captions.tsv` with the columns id and caption."""
    rows = [{'id': key, 'caption': text} for key, text in captions.items()]
    write_table(out / 'captions.tsv', rows, ['id', 'caption'])
