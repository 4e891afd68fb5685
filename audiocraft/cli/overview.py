"""What `python -m audiocraft --help` prints: the commands, the solvers, and where the XPs are."""

import typing as tp
from pathlib import Path

from .. import __doc__ as summary
from .. import __version__
from ..environment import AudioCraftEnvironment, config_folders
from ..utils.errors import UserError
from .verbs import DORA_VERBS, own_verbs

# Shared parts and the empty choice: nobody trains them.
_NOT_A_VARIANT = {'default', 'none', 'published'}  # what variants share


def solver_variants(roots: tp.Sequence[Path] | None = None) -> dict[str, str]:
    """What can be written after `solver=`, with the first line of comment of its yaml."""
    found = {}
    for root in config_folders() if roots is None else roots:
        folder = root / 'solver'
        for path in sorted(path for path in folder.rglob('*.yaml') if path.stem not in _NOT_A_VARIANT):
            found[path.relative_to(folder).with_suffix('').as_posix()] = _first_comment(path)
    return found


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding='utf-8').splitlines():
        text = line.lstrip('#').strip()
        if line.startswith('#') and text and not text.startswith('@package'):
            return text
    return ''


def _table(rows: dict[str, str]) -> list[str]:
    width = max([len(name) for name in rows], default=0)
    return [f'  {name.ljust(width)}  {text}'.rstrip() for name, text in rows.items()]


def _where() -> list[str]:
    try:
        folder = AudioCraftEnvironment.get_dora_dir() / 'xps'
        team, cluster = AudioCraftEnvironment.get_team(), AudioCraftEnvironment.get_cluster()
    except UserError as error:
        return [f'XPs: {error}']
    count = sum(1 for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else 0
    return [f'XPs: {folder}, {count} so far (team {team}, cluster {cluster}).',
            '  AUDIOCRAFT_DORA_DIR chooses another folder; AUDIOCRAFT_TEAM, _CLUSTER, _CONFIG and _REFERENCE_DIR',
            '  choose the settings of a team.']


def overview() -> str:
    """The text."""
    lines = [f'audiocraft {__version__}: {(summary or "").strip()}', '',
             'usage: python -m audiocraft COMMAND [--help] ...', '',
             'Training (`dora run`, `dora grid`, `dora launch`, `dora info` do the same):', *_table(DORA_VERBS), '',
             'Data and results:', *_table(own_verbs()), '',
             'Solvers (solver=NAME):', *_table(solver_variants()), '', *_where()]
    return '\n'.join(lines)
