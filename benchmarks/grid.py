"""What `dora grid X --dry_run --init` costs, beside Dora without our changes, in one run.

    python benchmarks/grid.py                # 200 XPs, about a minute on 2 cores
    python benchmarks/grid.py --xps 1000     # some minutes, nearly all of it Dora's own

Both read the same config and the same grid, each in processes of its own: Dora as it comes, with its pool of 4
processes, and `python -m audiocraft grid`. The signatures have to be the same. CPU time (user and system, of all
processes) is the fairer number on a machine that does other things, wall time is what one waits for. A first round
with one XP is not counted: it leaves the files of modules compiled and in memory.
"""
import argparse
import os
import subprocess as sp
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GRID = """
from dora import Explorer

@Explorer
def explorer(launcher):
    launcher.slurm_(gpus=0)
    launcher.bind_(solver='mmaudio/debug')
    for index in range({xps}):
        launcher({{'optim.lr': 1e-3 * (1 + index), 'seed': index % 7}})
"""
STOCK = """
from dora import hydra_main
from dora.conf import SlurmConfig

@hydra_main(config_path={config!r}, config_name='config', version_base='1.3')
def main(cfg):
    'Never called: nothing is run.'

main.dora.dir = {out!r}
main.get_slurm_config = SlurmConfig  # it does not know all settings of ours
"""


def make_project(root: Path, xps: int) -> None:
    """Write one grid for both, and a package around Dora's own main."""
    files = {'grids/bench.py': GRID.format(xps=xps), 'grids/__init__.py': '', 'stock/__init__.py': '',
             'stock/grids/__init__.py': '', 'stock/grids/bench.py': GRID.format(xps=xps),
             'stock/train.py': STOCK.format(config=str(ROOT / 'config'), out=str(root / 'out_stock'))}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def measure(root: Path, package: list[str]) -> tuple[float, float]:
    """Run the grid once; returns the seconds of wall and of CPU time, of all its processes."""
    command = [sys.executable, '-m', *package, 'grid', 'bench', '--dry_run', '--init', '--no_monitoring']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '',
                   'PYTHONPYCACHEPREFIX': str(root.parent / 'compiled'), 'AUDIOCRAFT_DORA_DIR': str(root / 'out_ours')}
    before, begin = os.times(), time.perf_counter()
    sp.run(command, cwd=root, env=environment, check=True, stdout=sp.DEVNULL)
    wall, after = time.perf_counter() - begin, os.times()
    return wall, (after.children_user + after.children_system) - (before.children_user + before.children_system)


def signatures(out: Path) -> set[str]:
    """The XPs that were made."""
    return {path.name for path in (out / 'xps').iterdir()}


def main(argv: tp.Sequence[str] | None = None) -> int:
    """Print both, and the ratios; 1 when the signatures differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--xps', type=int, default=200)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for name, xps in [('first', 1), ('counted', args.xps)]:
            root = Path(folder) / name
            make_project(root, xps)
            ours, stock = measure(root, ['audiocraft']), measure(root, ['dora', '-P', 'stock'])
        same = signatures(root / 'out_ours') == signatures(root / 'out_stock')
        made = len(signatures(root / 'out_ours'))
    print(f'{made} XPs     wall s   CPU s')
    for name, (wall, cpu) in [('Dora', stock), ('ours', ours)]:
        print(f'{name:8} {wall:8.2f} {cpu:7.2f}')
    print(f'Dora/ours {stock[0] / ours[0]:7.1f} {stock[1] / ours[1]:7.1f}')
    print('The signatures are the same.' if same else 'THE SIGNATURES DIFFER.')
    return 0 if same and made == args.xps else 1


if __name__ == '__main__':
    sys.exit(main())
