"""`dora grid`: which grids there are (those of the current folder and ours), and the table of their XPs."""

import importlib
import importlib.util
import sys
import time
import typing as tp
from pathlib import Path

import treetable as tt
from dora.explore import Explorer
from dora.log import fatal
from dora.main import DecoratedMain
from dora.shep import Sheep

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
        _ask_before_clear(args)
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


def _ask_before_clear(args: tp.Any) -> None:
    """`--clear` removes trainings: Dora asks on the terminal, and ends with a traceback where there is none."""
    if not getattr(args, 'clear', False):
        return
    if getattr(args, 'yes', False):
        args._from_commandline = False  # only then Dora asks
    elif not sys.stdin.isatty():
        raise UserError('--clear removes the folders of the XPs, and there is no terminal to ask on: add --yes to do '
                        'it. Nothing was cleared.')


# -- the table ------------------------------------------------------------------------------------------------------

def monitor(args: tp.Any, main: DecoratedMain, explorer: Explorer, herd: list[Sheep],
            maybe_print: tp.Callable[..., None]) -> bool:
    """Show the table, again every `args.interval` minutes, and once more when all jobs have ended.

    Dora cuts names of columns to 4 letters and states to 3, waits for the end of the interval when all is done, and
    ends with a traceback at Ctrl-C. Returns whether all jobs have ended.
    """
    try:
        while True:
            for watcher in {sheep.job.watcher for sheep in herd if sheep.job is not None}:
                watcher.update()
            finished = _all_done(herd)  # before the table, which then shows how they ended
            show(args, main, explorer, herd, maybe_print)
            if finished or not args.monitor or args.jupyter:
                return finished
            _wait(int(args.interval * 60), herd, maybe_print)
    except KeyboardInterrupt:
        maybe_print('\nNo longer watching. The jobs go on; the same command with --cancel stops them.')
        sys.exit(130)


def _all_done(herd: list[Sheep]) -> bool:
    return all(sheep.is_done() for sheep in herd)


def _wait(seconds: int, herd: list[Sheep], maybe_print: tp.Callable[..., None]) -> None:
    """Until the next table is due: with a countdown on a terminal, and no longer than jobs run."""
    terminal = sys.stdout.isatty()
    for left in range(seconds, 0, -1):
        if terminal:
            maybe_print(f'Next update in {left} seconds       ', end='\r', flush=True)
        time.sleep(1)
        if _all_done(herd):
            break
    maybe_print(' ' * 40 if terminal else '', end='\r' if terminal else '\n')


def show(args: tp.Any, main: DecoratedMain, explorer: Explorer, herd: list[Sheep],
         maybe_print: tp.Callable[..., None]) -> None:
    """Print one line for each XP, under the columns of the explorer."""
    names, common = main.get_names([sheep.xp for sheep in herd])
    histories = [main.get_xp_history(sheep.xp) for sheep in herd]
    length = None
    if args.trim is not None:
        length = len(histories[args.trim])
    elif args.trim_last:
        length = min(map(len, histories))
    lines = []
    for index, (sheep, history, name) in enumerate(zip(herd, histories, names)):
        lines.append({'Meta': {'name': name, 'index': index, 'sid': sheep.current_job_id or '', 'sig': sheep.xp.sig,
                               'state': sheep.state() or 'N/A'}, **_metrics(explorer, sheep, history[:length])})
    if common:
        maybe_print(f'All: {common}')
    columns = tt.table([tt.group('Meta', explorer.get_grid_meta()), *explorer.get_grid_metrics()])
    maybe_print(tt.treetable(lines, columns, colors=explorer.get_colors() if sys.stdout.isatty() else None))


def _metrics(explorer: Explorer, sheep: Sheep, history: list[dict]) -> dict[str, tp.Any]:
    try:
        return explorer.process_sheep(sheep, history)
    except NotImplementedError:
        return explorer.process_history(history)
