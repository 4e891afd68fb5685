"""What was wrong with the overrides of a command line, in two or three lines that a person can act on."""

import re
import typing as tp
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException

from .config import suggest

_UNKNOWN_KEY = re.compile(r"Could not override '([^']*)'")
_SHOWN = 24


def config_choices(roots: tp.Sequence[Path], group: str) -> list[str]:
    """What can be written after `group=`: the yaml files of `root/group`, as `debug` or `mmaudio/debug`."""
    folders = [root / group for root in roots]
    return sorted({path.relative_to(folder).with_suffix('').as_posix()
                   for folder in folders for path in folder.rglob('*.yaml')})


def variants(roots: tp.Sequence[Path], group: str = 'solver') -> list[str]:
    """The choices that one would train: not the shared parts (`default`), not the empty choice (`none`)."""
    return [name for name in config_choices(roots, group) if name.rsplit('/', 1)[-1] not in ('default', 'none')]


def _listed(words: tp.Sequence[str]) -> str:
    more = f', ... ({len(words)} in all)' if len(words) > _SHOWN else ''
    return ', '.join(words[:_SHOWN]) + more


def closest_key(key: str, keys: tp.Sequence[str]) -> str:
    """`did you mean ...?` for a dotted key: the same last word elsewhere first, then a similar spelling."""
    last = key.rsplit('.', 1)[-1]
    same = [known for known in keys if known.rsplit('.', 1)[-1] == last]
    if same:
        return f'did you mean "{min(same, key=len)}"?'
    prefix = key.rpartition('.')[0]
    siblings = [known for known in keys if known.rpartition('.')[0] == prefix]
    return suggest(key, siblings) or suggest(key, keys)


def unknown_key(key: str, keys: tp.Sequence[str]) -> str:
    """The message for a key that the config does not have."""
    lines = [f'Unknown key "{key}"' + (f': {hint}' if (hint := closest_key(key, keys)) else '.')]
    prefix = key.rpartition('.')[0]
    while prefix and not any(known.startswith(f'{prefix}.') for known in keys):
        prefix = prefix.rpartition('.')[0]
    start = f'{prefix}.' if prefix else ''
    names = sorted({known[len(start):].split('.')[0] for known in keys if known.startswith(start)})
    lines.append(f'The keys of {f"{prefix!r}" if prefix else "the config"} are: {_listed(names)}.')
    lines.append(f'To add a key that no yaml has, write +{key}=...')
    return '\n'.join(lines)


def unknown_choice(group: str, value: str, choices: tp.Sequence[str]) -> str:
    """The message for `group=value` when there is no such yaml."""
    hint = suggest(value, choices)
    return f'There is no {group} "{value}"' + (f': {hint}' if hint else '.') + f'\nThere are: {_listed(choices)}.'


def not_an_override(argument: str, solvers: tp.Sequence[str]) -> str:
    """The message for an argument without `=`."""
    if argument.startswith('-'):
        return (f'"{argument}" is a flag, where only overrides KEY=VALUE are expected: flags go before all overrides '
                '(dora run --clear solver=...). `python -m audiocraft --help` shows the commands.')
    if argument.startswith('~'):
        return f'"{argument}": a key cannot be taken away from an XP; set it to null instead ({argument[1:]}=null).'
    if argument in solvers:
        return f'"{argument}" is not an override: did you mean "solver={argument}"?'
    hint = suggest(argument, solvers)
    return f'"{argument}" is not an override, which looks like KEY=VALUE' + (
        f': {hint.replace(chr(34), chr(34) + "solver=", 1)}' if hint else ', for instance solver=mmaudio/debug.')


def explain(error: Exception, argv: tp.Sequence[str], groups: tp.Sequence[str], roots: tp.Sequence[Path],
            keys: tp.Callable[[], tp.Sequence[str]]) -> str:
    """Say what was wrong.

    Args:
        error (Exception): what Hydra, OmegaConf or Dora raised while it read the overrides.
        argv (list of str): the overrides.
        groups (list of str): the names of the config groups.
        roots (list of Path): the config folders.
        keys (callable): gives the dotted keys of the config; called only when they are needed.
    """
    bad = [argument for argument in argv if '=' not in argument]
    if bad:
        return not_an_override(bad[0], variants(roots))
    text = str(error)
    if (match := _UNKNOWN_KEY.search(text)) is not None:
        return unknown_key(match[1], [*keys(), *(group for group in groups if '/' not in group)])
    if isinstance(error, MissingConfigException):
        for argument in argv:
            group, value = argument.lstrip('+').split('=', 1)
            if group in groups and value not in config_choices(roots, group):
                return unknown_choice(group, value, (variants if group == 'solver' else config_choices)(roots, group))
    if isinstance(error, OverrideParseException):
        return (f'Cannot read the override "{error.override}": {" ".join(text.split("See http")[0].split())}\n'
                'Values with spaces or special characters need quotes for both readers: \'key="a b"\'.')
    cause = f' ({" ".join(str(error.__cause__).split())})' if error.__cause__ is not None else ''
    return ' '.join(text.split('Config search path')[0].split()) + cause
