"""How some XPs differ, side by side: overrides, resolved configs, the last metrics of each stage."""

import argparse
import typing as tp
from pathlib import Path

from ..utils.errors import UserError

ABSENT = '(absent)'
_LONGEST = 40  # characters of a cell


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('xps', nargs='+', metavar='SIG', help='two or more signatures, or folders of XPs')
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the comparison."""
    from ._xps import find_xp
    if len(args.xps) < 2:
        raise UserError('compare takes two XPs or more, e.g. compare SIG SIG.')
    print(compare([find_xp(word) for word in args.xps]))
    return 0


def compare(folders: tp.Sequence[Path]) -> str:
    """The comparison of the XPs in these folders; of two, the numbers are also subtracted."""
    from ._xps import history_of, overrides_of, table
    sections = {
        'overrides': _different([_by_key(overrides_of(folder)) for folder in folders]),
        'config': _different([read_config(folder) for folder in folders]),
        'metrics': _metrics([history_of(folder) for folder in folders]),
    }
    rows = [['', *(folder.name for folder in folders), *(['difference'] if len(folders) == 2 else [])]]
    for title, found in sections.items():
        rows.append([title if found else f'{title}: none differ' if title != 'metrics' else 'no metrics yet'])
        rows += [[f'  {name}', *map(_text, values), *_difference(values)] for name, values in found]
    rows = [row + [''] * (len(rows[0]) - len(row)) for row in rows]
    return '\n'.join(line.removeprefix('  ') for line in table(rows))


def read_config(folder: Path) -> dict[str, tp.Any]:
    """The config of an XP by dotted key, secrets hidden: that of its newest checkpoint, else what Hydra kept.

    Empty when the XP never ran.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ..utils.config import flatten
    from ..utils.secrets import hide_config
    path = _config_file(folder)
    if path is None:
        return {}
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # the yaml reader has its own family of errors
        raise UserError(f'{path} is not a readable yaml file: {" ".join(str(error).split())[:200]}') from error
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:  # it refers to what only its own process had
        plain = OmegaConf.to_container(config, resolve=False)
    return flatten(hide_config(tp.cast(dict[str, tp.Any], plain))) if isinstance(plain, dict) else {}


def _config_file(folder: Path) -> Path | None:
    whole = [path.parent for path in (folder / 'checkpoints').glob('*/COMMIT') if path.parent.name.isdecimal()]
    newest = [path / 'config.yaml' for path in sorted(whole, key=lambda path: int(path.name), reverse=True)]
    return next((path for path in [*newest, folder / '.hydra' / 'config.yaml'] if path.is_file()), None)


def _by_key(overrides: tp.Sequence[str]) -> dict[str, tp.Any]:
    return {override.partition('=')[0]: override.partition('=')[2] for override in overrides}


def _different(sides: tp.Sequence[dict[str, tp.Any]]) -> list[tuple[str, list[tp.Any]]]:
    """`(key, values)` of the keys that are not the same on all sides."""
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = [(key, [side.get(key, ABSENT) for side in sides]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _metrics(histories: tp.Sequence[list[dict[str, tp.Any]]]) -> list[tuple[str, list[tp.Any]]]:
    """`(stage/metric, values)` of the last epoch in which each XP ran each stage, and which epoch that was."""
    sides: list[dict[str, tp.Any]] = []
    for history in histories:
        side: dict[str, tp.Any] = {}
        for number, stages in enumerate(history, start=1):
            for stage, metrics in stages.items():
                metrics = metrics if isinstance(metrics, dict) else {}
                side = {name: value for name, value in side.items() if not name.startswith(f'{stage}/')}
                side |= {f'{stage}/(epoch)': number, **{f'{stage}/{name}': value for name, value in metrics.items()}}
        sides.append(side)
    names = dict.fromkeys(name for side in sides for name in side)
    order = {stage: index for index, stage in enumerate(dict.fromkeys(name.partition('/')[0] for name in names))}
    return [(name, [side.get(name, ABSENT) for side in sides])
            for name in sorted(names, key=lambda name: order[name.partition('/')[0]])]


def _text(value: tp.Any) -> str:
    text = 'null' if value is None else f'{value:.6g}' if isinstance(value, float) else str(value)
    text = ' '.join(text.split())
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST - 16]}...{text[-13:]}'


def _difference(values: tp.Sequence[tp.Any]) -> list[str]:
    """The second number less the first."""
    if len(values) != 2 or not all(isinstance(value, (int, float)) and type(value) is not bool for value in values):
        return []
    return [f'{values[1] - values[0]:+.4g}']
