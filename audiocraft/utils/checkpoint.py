"""Checkpoints: one folder per update, whole or not there, read without running code.

`<folder>/<update>/` holds `<name>.safetensors` for each model, `state.pt` (plain types, loads with `weights_only`),
`rng-rank<r>.pt`, `config.yaml`, and `COMMIT`, which lists the size and sha256 of all others. A checkpoint is written to
a temporary folder, synced, `COMMIT` last, then renamed; older ones are deleted only afterwards.
"""
import json
import logging
import os
import re
import shutil
import typing as tp
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from .errors import UserError
from .files import fsync_dir, fsync_file, open_to_others, sha256_of, write_atomic

logger = logging.getLogger(__name__)

VERSION = 1
_NAME = re.compile(r'(\d+)(\.replaced)?')
_RANK = re.compile(r'rng-rank(\d+)\.pt')
State = dict[str, torch.Tensor]


class Damaged(UserError):
    """One checkpoint folder is not what its `COMMIT` says."""


@dataclass
class Checkpoint:
    """A checkpoint in memory, all tensors on the CPU.

    Attributes:
        path (Path): its folder.
        update (int): number of updates done when it was made.
        models (dict): name of the file (`model`, `ema`, `best`, ...) to state dict.
        state (dict): everything else, plain types.
        config (str): the resolved config, as yaml text.
        rank_states (dict): rank to its own state (random generators).
    """
    path: Path
    update: int
    models: dict[str, State] = field(default_factory=dict)
    state: dict[str, tp.Any] = field(default_factory=dict)
    config: str = ''
    rank_states: dict[int, dict[str, tp.Any]] = field(default_factory=dict)


def plain_state(value: tp.Any, where: str = 'state') -> tp.Any:
    """Return a copy of a state that `torch.load(weights_only=True)` accepts.

    Tensors go to the CPU, without the storage around a view; numpy, `Path` and kinds of dict become plain.
    Raises:
        TypeError: something else is in it; the message names the place.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value.cpu() if whole or value.device.type != 'cpu' else value.clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tp.Mapping):
        return {key: plain_state(part, f'{where}.{key}') for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        kind = type(value) if type(value) in (list, tuple, set) else tuple
        return kind(plain_state(part, f'{where}[{index}]') for index, part in enumerate(value))
    raise TypeError(f'{where} is a {type(value).__module__}.{type(value).__qualname__}: a checkpoint holds tensors, '
                    'numbers, text, lists and dicts only.')


def _untied(state: tp.Mapping[str, torch.Tensor]) -> tuple[State, dict[str, str]]:
    """Return the tensors to write and {alias: name} for those that are the same memory (tied weights)."""
    kept: State = {}
    seen: dict[tuple, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        tensor = tensor.cpu().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        kept[name] = tensor if whole else tensor.clone()
    return kept, aliases


def write_tensors(path: str | Path, state: tp.Mapping[str, torch.Tensor]) -> None:
    """Write a state dict as safetensors; tied weights are written once and listed in the metadata."""
    kept, aliases = _untied(state)
    safetensors.torch.save_file(kept, str(path), metadata={'format': 'pt', 'aliases': json.dumps(aliases)})
    open_to_others(path)


def read_tensors(path: str | Path, device: str = 'cpu') -> State:
    """Read a safetensors file, tied weights included.

    Raises:
        UserError: the file is missing or is not a whole safetensors file.
    """
    try:
        with safetensors.safe_open(str(path), framework='pt', device=device) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            aliases = json.loads((file.metadata() or {}).get('aliases', '{}'))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'Cannot read the weights in {path}: {error}') from error
    return {**state, **{alias: state[name] for alias, name in aliases.items()}}


def _write_pt(path: Path, content: tp.Any) -> None:
    """Write plain content; raises the `OSError` of a full disk, which torch hides behind an error of its own."""
    try:
        with open(path, 'wb') as file:  # with a path, torch does not even say that it was an `OSError`
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _write_files(folder: Path, models: tp.Mapping[str, State], state: dict, config: str,
                 rank_states: tp.Mapping[int, dict]) -> None:
    for name, tensors in models.items():
        write_tensors(folder / f'{name}.safetensors', tensors)
    _write_pt(folder / 'state.pt', plain_state(state))
    for rank, rank_state in rank_states.items():
        _write_pt(folder / f'rng-rank{rank}.pt', plain_state(rank_state, f'rank {rank}'))
    (folder / 'config.yaml').write_text(config, encoding='utf-8')


def _commit(folder: Path, update: int) -> None:
    """Sync every file, then write the list of them."""
    listed = {}
    for path in sorted(folder.iterdir()):
        fsync_file(path)
        listed[path.name] = {'size': path.stat().st_size, 'sha256': sha256_of(path)}
    content = {'version': VERSION, 'update': update, 'files': listed}
    write_atomic(folder / 'COMMIT', json.dumps(content, indent=1))
    fsync_dir(folder)


def _publish(temporary: Path, final: Path) -> None:
    """Rename the folder to its name; a checkpoint of the same update stays readable until then."""
    replaced = final.with_name(f'{final.name}.replaced')
    if final.exists():
        _remove(replaced)
        os.rename(final, replaced)
    os.rename(temporary, final)
    fsync_dir(final.parent)
    _remove(replaced)


def _remove(folder: Path) -> None:
    """Delete a folder so that a crash on the way leaves no half of it under its name."""
    if not folder.exists():
        return
    trash = folder.with_name(f'.trash-{uuid.uuid4().hex[:8]}')
    os.rename(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _clean(folder: Path) -> None:
    """Remove what a killed process left unfinished."""
    for path in [*folder.glob('.tmp-*'), *folder.glob('.trash-*')]:
        shutil.rmtree(path, ignore_errors=True)


def _delete_old(folder: Path, keep_last: int | None, keep_every: int | None) -> None:
    if not keep_last:
        return
    for path in list_checkpoints(folder)[:-keep_last]:
        if not (keep_every and int(path.name.split('.')[0]) % keep_every == 0):
            _remove(path)


def save_checkpoint(folder: str | Path, update: int, *, models: tp.Mapping[str, State], state: dict[str, tp.Any],
                    config: str = '', rank_states: tp.Mapping[int, dict] | None = None,
                    keep_last: int | None = None, keep_every: int | None = None) -> Path:
    """Write one checkpoint, then delete the old ones.

    Args:
        folder (Path): the folder of all checkpoints.
        update (int): number of updates done; the name of the checkpoint.
        models (dict): state dicts, each written to `<name>.safetensors`.
        state (dict): everything else: plain containers, numbers, text and tensors.
        config (str): resolved config, yaml text.
        rank_states (dict): rank to its own state.
        keep_last (int or None): how many checkpoints to keep; None keeps all.
        keep_every (int or None): those whose update is a multiple of it are kept for ever.
    Returns:
        Path: the folder of the new checkpoint.
    Raises:
        UserError: it could not be written (disk full, no permission); those before it are untouched.
    """
    folder = Path(folder)
    temporary = folder / f'.tmp-{update}-{os.getpid()}-{uuid.uuid4().hex[:8]}'
    final = folder / str(update)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, models, state, config, rank_states or {})
        _commit(temporary, update)
        _publish(temporary, final)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f'Cannot write the checkpoint {final}: {error}. The earlier checkpoints are untouched: '
                        'make room or mend the permissions, and start again.') from error
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _clean(folder)
    _delete_old(folder, keep_last, keep_every)
    return final


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the folders of the checkpoints, oldest first, whether or not they are whole."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    # `7.replaced` (a crash between two renames) is older than `7`.
    ranked = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    return [path for _, _, path in sorted(ranked)]


def _check_commit(path: Path) -> int:
    """Compare every file with `COMMIT`; return the update."""
    try:
        commit = json.loads((path / 'COMMIT').read_text(encoding='utf-8'))
        files, update, version = dict(commit['files']), int(commit['update']), int(commit['version'])
    except FileNotFoundError:
        raise Damaged(f'{path}: no COMMIT file, it was not written to its end') from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f'{path / "COMMIT"}: unreadable ({error})') from error
    if version > VERSION:
        raise UserError(f'{path} was written by a newer version of audiocraft (format {version}, this one reads '
                        f'{VERSION}). Update the package.')
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f'{file}: missing')
        try:
            size, digest = file.stat().st_size, sha256_of(file)
        except OSError as error:
            raise Damaged(f'{file}: {error}') from error
        if size != facts['size']:
            raise Damaged(f'{file}: {size} bytes, {facts["size"]} were written')
        if digest != facts['sha256']:
            raise Damaged(f'{file}: its content changed since it was written (sha256)')
    return update


def _load_pt(path: Path) -> tp.Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what torch raises for a damaged or hostile file is of many kinds
        raise Damaged(f'{path}: unreadable ({str(error).splitlines()[0]})') from error


def read_checkpoint(path: str | Path, names: tp.Collection[str] | None = None) -> Checkpoint:
    """Read one checkpoint folder, after a check of every file; changes nothing.

    Args:
        path (Path): the folder of one checkpoint.
        names (list of str or None): models to read; all when None.
    Raises:
        UserError: it is not whole, or another version wrote it.
    """
    path = Path(path)
    update = _check_commit(path)
    weights = {file.stem: file for file in sorted(path.glob('*.safetensors'))}
    models = {name: read_tensors(file) for name, file in weights.items() if names is None or name in names}
    ranks = {int(match[1]): _load_pt(file) for file in path.iterdir() if (match := _RANK.fullmatch(file.name))}
    config = (path / 'config.yaml').read_text(encoding='utf-8')
    return Checkpoint(path=path, update=update, models=models, state=_load_pt(path / 'state.pt'), config=config,
                      rank_states=ranks)


def _set_aside(path: Path) -> None:
    target, number = path.with_name(f'{path.name}.corrupt'), 1
    while target.exists():
        number += 1
        target = path.with_name(f'{path.name}.corrupt-{number}')
    os.rename(path, target)


def load_latest(folder: str | Path, *, set_aside: bool = True) -> Checkpoint | None:
    """Read the newest whole checkpoint.

    Args:
        folder (Path): the folder of all checkpoints.
        set_aside (bool): rename the damaged ones to `<update>.corrupt`. Leave it off for a run that somebody
            else owns: then nothing is changed.
    Returns:
        Checkpoint, or None when none was ever finished.
    Raises:
        UserError: there are checkpoints and none is whole: starting from scratch is never silent.
    """
    folder = Path(folder)
    problems = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except Damaged as error:
            problems.append(str(error))
            logger.warning('Damaged checkpoint: %s. Taking the one before it.', error)
            if set_aside:
                _set_aside(path)
    corrupt = sorted(folder.glob('*.corrupt*')) if folder.is_dir() else []
    if problems or corrupt:
        listed = '; '.join(problems) or ', '.join(str(path) for path in corrupt)
        raise UserError(f'There are checkpoints in {folder} but none is whole: {listed}. Restore one from a copy, or '
                        'start again from nothing with `dora run --clear` and the same arguments.')
    return None
