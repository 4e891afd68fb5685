"""The commands there are: each is a file of this folder with `parser()` and `main(args)`."""

import ast
from pathlib import Path

# Dora's own commands; `forward.py` hands them over.
DORA_VERBS = {
    'run': 'train an XP (again: resume it), e.g. run solver=mmaudio/debug',
    'grid': 'show and schedule the XPs of a grid file, e.g. grid mmaudio.debug --dry_run --init',
    'launch': 'schedule one XP as grid does, and follow its log, e.g. launch -f SIG',
    'info': 'the XPs there are; one of them: info -f SIG (-m last metrics, -t log, -v whole config)',
}
_NOT_VERBS = ('dispatch', 'forward', 'overview', 'verbs')


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return text.partition('\n')[0].rstrip('.')


def own_verbs() -> dict[str, str]:
    """The commands of our own and what they do, read from the files without importing them."""
    files = sorted(Path(__file__).parent.glob('[!_]*.py'))
    return {path.stem: _first_line(path) for path in files if path.stem not in _NOT_VERBS}


def all_verbs() -> dict[str, str]:
    """All commands."""
    return {**DORA_VERBS, **own_verbs()}
