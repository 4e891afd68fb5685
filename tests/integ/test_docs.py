"""Every ```bash block of README.md and docs/ runs as written, with a tiny configuration (see tiny.py).

The blocks of a file run in their order in one shell, all files in one folder that looks like a checkout. A block after
`<!-- not run: REASON -->` is parsed, and the solvers, commands and targets that it names must exist.
"""

import os
import re
import subprocess as sp
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from audiocraft.cli.verbs import all_verbs

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'(?:^<!-- not run: (?P<why>[^\n]+?) -->\n+)?^```bash\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]


class Block(NamedTuple):
    """A block of a file; `why` it is not run, or None."""
    line: int
    code: str
    why: str | None


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding='utf-8')
    return [Block(text[:match.start('code')].count('\n') + 1, match['code'], match['why'])
            for match in BLOCK.finditer(text)]


def script(path: Path) -> str:
    """One shell script with the blocks to run, each announced."""
    announced = (f"echo '=== {path.name}:{block.line}' >&2\n{block.code}" for block in blocks(path) if not block.why)
    return 'set -euo pipefail\n' + '\n'.join(announced)


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_every_bash_block_is_found_and_parses(path):
    assert len(blocks(path)) == path.read_text(encoding='utf-8').count('```bash')
    for block in blocks(path):
        done = sp.run(['bash', '-n'], input=block.code, text=True, capture_output=True)
        assert done.returncode == 0, f'{path.name}:{block.line}: {done.stderr}'


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_what_commands_name_exists(path):
    targets = set(re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for block in blocks(path):
        for name in re.findall(r'\bsolver=([\w/]+)', block.code):
            assert (ROOT / 'config' / 'solver' / f'{name}.yaml').exists(), f'{path.name}:{block.line}: solver={name}'
        for verb in re.findall(r'python -m audiocraft (\w+)', block.code):
            assert verb in all_verbs(), f'{path.name}:{block.line}: python -m audiocraft {verb}'
        for target in re.findall(r'^\s*make (\w+)', block.code, re.MULTILINE):
            assert target in targets, f'{path.name}:{block.line}: make {target}'


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_links_of_the_docs_lead_somewhere(path):
    for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', path.read_text(encoding='utf-8')):
        assert (path.parent / link).exists(), f'{path.name}: {link}'


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A folder with the files of this checkout, and room for data and outputs of its own."""
    folder = tmp_path_factory.mktemp('docs')
    for name in ('audiocraft', 'benchmarks', 'config', 'docs', 'grids', 'scripts', 'tests', 'README.md', 'Makefile'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'bin').mkdir()
    for program in ('dora', 'python', 'torchrun'):
        stand_in = folder / 'bin' / program
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/integ/tiny.py" {program} "$@"\n')
        stand_in.chmod(0o755)
    return folder


@pytest.mark.integ
@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_the_commands_run(path, checkout):
    env = {**os.environ, 'PATH': f'{checkout / "bin"}:{os.environ["PATH"]}', 'PYTHONPATH': str(checkout),
           'AUDIOCRAFT_DORA_DIR': str(checkout / 'outputs')}
    done = sp.run(['bash'], input=script(path), text=True, cwd=checkout, env=env, stdout=sp.PIPE, stderr=sp.STDOUT,
                  timeout=800)
    assert done.returncode == 0, '\n'.join(done.stdout.splitlines()[-60:])
