"""Which grids there are: those of the current folder and ours."""

import importlib
import importlib.util
import sys
import typing as tp
from pathlib import Path

from dora.explore import Explorer
from dora.log import fatal
from dora.main import DecoratedMain

from ..environment import CONFIG_ROOT
from ..utils.config import suggest
from ..utils.errors import UserError

OUR_GRIDS = 'audiocraft._grids'


def _our_grids() -> Path | None:
    root = CONFIG_ROOT.parent / ('_grids' if CONFIG_ROOT.name == '_config' else 'grids')
    return root if (root / '__init__.py').exists() else None


def _import_our_grids() -> None:
    """Make our grids importable as `audiocraft._grids` also from a checkout, where they lie beside the package."""
    folder = _our_grids()
    if folder is None or OUR_GRIDS in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(OUR_GRIDS, folder / '__init__.py',
                                                  submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[OUR_GRIDS] = module
    spec.loader.exec_module(module)


def grid_packages() -> dict[str, Path]:
    """The packages that hold grids and their folders: the current folder's first, ours second."""
    found = {}
    here = Path('grids').resolve()
    ours = _our_grids()
    if here.is_dir() and here != ours:
        if not (here / '__init__.py').exists():
            raise UserError(f'{here} is not a package: add an empty {here / "__init__.py"}.')
        found['grids'] = here
    if ours is not None:
        found[OUR_GRIDS] = ours
    return found


def grid_names(folder: Path) -> list[str]:
    """The grids in a folder, as `task.name`."""
    files = [path.relative_to(folder).with_suffix('') for path in folder.rglob('*.py')]
    return sorted('.'.join(file.parts) for file in files if not any(part.startswith('_') for part in file.parts))


def get_explore(stock: tp.Callable[..., Explorer]) -> tp.Callable[..., Explorer]:
    """Dora looks into one package, and a misspelled grid ends with exit status 0."""
    def get_explore(args: tp.Any, main: DecoratedMain) -> Explorer:
        packages = grid_packages()
        names = sorted({name for folder in packages.values() for name in grid_names(folder)})
        if args.grid is None:
            print('Grids: ' + ', '.join(names))
            sys.exit(0)
        for package, folder in packages.items():
            if args.grid in grid_names(folder):
                main.dora.grid_package = package
                return _load_explorer(stock, args, main, package)
        hint = suggest(args.grid, names)
        raise UserError(f'There is no grid "{args.grid}"' + (f': {hint}' if hint else '.')
                        + f'\nThere are: {", ".join(names)}.')
    return get_explore


def _load_explorer(stock: tp.Callable[..., Explorer], args: tp.Any, main: DecoratedMain, package: str) -> Explorer:
    if package == OUR_GRIDS:
        _import_our_grids()
    else:
        sys.path.insert(0, str(Path('.').resolve()))
    try:
        importlib.import_module(f'{package}.{args.grid}')
    except ImportError as error:
        # Dora says only that the import failed.
        fatal(f'Cannot import the grid {args.grid}: {error}')
    return stock(args, main)
