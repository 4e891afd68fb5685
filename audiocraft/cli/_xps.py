"""The XPs that there are, newest first: what `info` shows when it is not told which one."""

import json
import time
from pathlib import Path

from ..environment import AudioCraftEnvironment


def _read(path: Path) -> list:
    try:
        return list(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError):
        return []


def list_xps(limit: int = 50) -> str:
    """One line per XP: signature, epochs, when it last changed, overrides."""
    root = AudioCraftEnvironment.get_dora_dir() / 'xps'
    folders = [path for path in root.glob('*') if (path / '.argv.json').exists()]
    if not folders:
        return f'No XPs in {root} yet.'
    lines = [f'XPs in {root}:']
    for folder in sorted(folders, key=_changed, reverse=True)[:limit]:
        when = time.strftime('%Y-%m-%d %H:%M', time.localtime(_changed(folder)))
        epochs = len(_read(folder / 'history.json'))
        lines.append(f'  {folder.name}  {when}  {epochs:4d} epochs  {" ".join(_read(folder / ".argv.json"))}')
    if len(folders) > limit:
        lines.append(f'  ... and {len(folders) - limit} older ones.')
    return '\n'.join(lines)


def _changed(folder: Path) -> float:
    history = folder / 'history.json'
    return (history if history.exists() else folder / '.argv.json').stat().st_mtime
