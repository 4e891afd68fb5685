"""Imports go down the layers only, wherever they stand in a file; some names are for some files only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'audiocraft'
LAYERS = [
    ['utils'],
    ['environment', 'weights', 'distrib', 'dora_compat', 'launch'],
    ['data', 'modules', 'flow', 'optim'],
    ['quantization', 'conditioning', 'losses', 'adversarial', 'examples'],
    ['models'],
    ['features'],
    ['metrics', 'pages'],
    ['solvers'],
    ['train'],
    ['cli'],
    ['__main__'],
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# Files directly in the package are one folder: those of one layer may see each other.
FILES_OF_PACKAGE = set(LAYERS[1])
OMEGACONF = ('utils/config.py', 'environment.py', 'dora_compat.py', 'launch/', 'train.py', 'cli/', 'solvers/')
FILES = sorted(PACKAGE.rglob('*.py'))


def imports(text: str, file: str) -> list[str]:
    """All absolute names that a file imports, e.g. `audiocraft.data.store` or `torch.nn.Module`."""
    package = ('audiocraft/' + file).split('/')[:-1]
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            names += ['.'.join([*base, alias.name]) for alias in node.names]
    return names


def wrong_imports(text: str, file: str) -> list[str]:
    """The imports of a file that do not go down."""
    own = Path(file).parts[0].removesuffix('.py')
    wrong = []
    for name in imports(text, file):
        unit = name.split('.')[1] if name.startswith('audiocraft.') else None
        if unit is None or unit in ('__version__', '__doc__', own) or own == '__init__':
            continue
        beside = unit in FILES_OF_PACKAGE and own in FILES_OF_PACKAGE
        if not beside and LEVEL[unit] >= LEVEL[own]:
            wrong.append(f'{file} imports {name}')
    return wrong


def uses(text: str, file: str, module: str) -> bool:
    """Whether a file imports a module or reaches into it (`torch.distributed.barrier`)."""
    reached = [ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    return any(name == module or name.startswith(f'{module}.') for name in [*imports(text, file), *reached])


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_layers(path):
    file, text = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding='utf-8')
    assert wrong_imports(text, file) == []
    assert file == 'distrib.py' or not uses(text, file, 'torch.distributed'), 'only distrib.py names torch.distributed'
    assert file.startswith(OMEGACONF) or not uses(text, file, 'omegaconf'), 'the config stops at the solver'


def test_no_cycle_of_files():
    modules = {'.'.join(('audiocraft', *path.relative_to(PACKAGE).with_suffix('').parts)): path for path in FILES}
    edges = {}
    for module, path in modules.items():
        names = imports(path.read_text(encoding='utf-8'), path.relative_to(PACKAGE).as_posix())
        edges[module] = {known for name in names for known in (name, name.rpartition('.')[0])
                         if known in modules and known != module}
    while leaves := [module for module, needs in edges.items() if not needs]:
        edges = {module: needs - set(leaves) for module, needs in edges.items() if module not in leaves}
    assert edges == {}, f'these files import each other: {sorted(edges)}'


@pytest.mark.parametrize('text, file', [
    ('from ..solvers import base', 'data/x.py'),
    ('def f():\n    from ..models.mmaudio import MMAudio', 'modules/x.py'),
    ('from ..modules import rope', 'data/x.py'),
    ('import audiocraft.train', 'solvers/x.py'),
    ('from .. import weights', 'utils/x.py'),
    ('from .solvers import base', 'environment.py'),
])
def test_finds_what_goes_up(text, file):
    assert len(wrong_imports(text, file)) == 1


@pytest.mark.parametrize('text', ['import torch.distributed as d', 'from torch import distributed',
                                  'import torch\ntorch.distributed.barrier()', 'from torch.distributed import barrier'])
def test_finds_torch_distributed(text):
    assert uses(text, 'solvers/x.py', 'torch.distributed')


def test_finds_nothing_in_good_code():
    good = 'import torch\nfrom ..utils.errors import UserError\nfrom .. import distrib\nfrom . import base'
    assert wrong_imports(good, 'solvers/x.py') == []
    assert not uses(good, 'solvers/x.py', 'torch.distributed')
