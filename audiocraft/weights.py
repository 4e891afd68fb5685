"""The registry of external weights: what there is, who needs it, and where it lies on this machine.

Nothing here is downloaded by training or evaluation. A weight is looked for, in this order: at the path given in the
config, in `$AUDIOCRAFT_WEIGHTS/<name>/`, in the local cache of the Hugging Face hub. Only `fetch` touches the network.
"""

import hashlib
import logging
import os
import typing as tp
from dataclasses import dataclass
from pathlib import Path

from .utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One external weight file.

    Args:
        name (str): how configs and commands call it (`//pretrained/NAME`).
        file (str): its file name.
        repo (str or None): repository on the Hugging Face hub, with `repo_file` the path in it.
        url (str or None): where `fetch` takes it from when there is no repository.
        digest (str): `sha256:...`, or `md5:...` where that is what its authors publish.
        licence (str): the licence of the weights.
        used_by (str): what needs it.
    """

    name: str
    file: str
    digest: str
    licence: str
    used_by: str
    repo: str | None = None
    repo_file: str | None = None
    url: str | None = None

    @property
    def source(self) -> str | None:
        """The address that `fetch` reads."""
        if self.repo is not None:
            return f'https://huggingface.co/{self.repo}/resolve/main/{self.repo_file or self.file}'
        return self.url


_NC = 'CC-BY-NC 4.0'
_MMAUDIO_HUB = 'hkchengrex/MMAudio'


def _mmaudio(variant: str, md5: str) -> Entry:
    file = f'mmaudio_{variant}.pth'
    return Entry(f'mmaudio_{variant}', file, f'md5:{md5}', _NC, f'model mmaudio, variant {variant}',
                 repo=_MMAUDIO_HUB, repo_file=f'weights/{file}')


def _mmaudio_part(name: str, file: str, md5: str, used_by: str) -> Entry:
    return Entry(name, file, f'md5:{md5}', _NC, used_by, repo=_MMAUDIO_HUB, repo_file=f'ext_weights/{file}')


_ENTRIES = [
    _mmaudio('small_16k', 'af93cde404179f58e3919ac085b8033b'),
    _mmaudio('small_44k', 'babd74c884783d13701ea2820a5f5b6d'),
    _mmaudio('medium_44k', '5a56b6665e45a1e65ada534defa903d0'),
    _mmaudio('large_44k', 'fed96c325a6785b85ce75ae1aafd2673'),
    _mmaudio('large_44k_v2', '01ad4464f049b2d7efdaa4c1a59b8dfe'),
    _mmaudio_part('mmaudio_vae_16k', 'v1-16.pth', '69f56803f59a549a1a507c93859fd4d7', 'the 16 kHz mel VAE'),
    _mmaudio_part('mmaudio_vae_44k', 'v1-44.pth', 'fab020275fa44c6589820ce025191600', 'the 44.1 kHz mel VAE'),
    _mmaudio_part('bigvgan_16k', 'best_netG.pt', 'eeaf372a38a9c31c362120aba2dde292', 'the 16 kHz vocoder'),
    _mmaudio_part('synchformer', 'synchformer_state_dict.pth', '5b2f5594b0730f70e41e549b7c94390c',
                  'the motion features of mmaudio'),
]


def entries() -> list[Entry]:
    """All external weights, in the order of the registry."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry with this name. Raises `UserError`, with the names there are, when there is none."""
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    names = ', '.join(candidate.name for candidate in _ENTRIES)
    raise UserError(f'There are no weights called "{name}" in the registry; it has {names}.')


def weights_folder() -> Path:
    """`$AUDIOCRAFT_WEIGHTS`, or `~/.cache/audiocraft/weights`."""
    chosen = os.environ.get('AUDIOCRAFT_WEIGHTS')
    return Path(chosen).expanduser() if chosen else Path.home() / '.cache' / 'audiocraft' / 'weights'


def _hub_snapshots(wanted: Entry) -> list[Path]:
    """Where the local hub cache would hold this file, newest first."""
    if wanted.repo is None:
        return []
    cache = os.environ.get('HF_HUB_CACHE') or Path(os.environ.get('HF_HOME') or '~/.cache/huggingface') / 'hub'
    folder = Path(cache).expanduser() / f'models--{wanted.repo.replace("/", "--")}' / 'snapshots'
    found = [path / (wanted.repo_file or wanted.file) for path in folder.glob('*')]
    return sorted((path for path in found if path.exists()), key=lambda path: path.stat().st_mtime, reverse=True)


def find(name: str, path: str | Path | None = None) -> Path:
    """The file of these weights on this machine; `path` (from a config) goes first. Raises `UserError` if missing."""
    if path is not None:
        given = Path(path).expanduser()
        if not given.exists():
            raise UserError(f'The weights "{name}" should be at {given}, where there is nothing.')
        return given
    wanted = entry(name)
    home = weights_folder() / name / wanted.file
    for candidate in [home, *_hub_snapshots(wanted)]:
        if candidate.exists():
            return candidate
    raise UserError(f'The weights "{name}" ({wanted.used_by}) are not on this machine: put {wanted.file} at {home}, or '
                    f'run `python -m audiocraft weights fetch {name}` (licence: {wanted.licence}).')


def _digest(path: Path, kind: str) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, kind).hexdigest()


def verify(name: str) -> Path:
    """Check the digest of these weights and return their path. Raises `UserError` if missing or different."""
    path = find(name)
    _check(path, entry(name))
    return path


def _check(path: Path, wanted: Entry) -> None:
    kind, expected = wanted.digest.split(':')
    got = _digest(path, kind)
    if got != expected:
        raise UserError(f'{path} is not the published "{wanted.name}": its {kind} is {got}, expected {expected}. '
                        'Delete it and fetch it again.')


def _open(address: str) -> tp.Any:
    from urllib.request import urlopen  # costs 20 ms, which every command would pay at the top of the file
    return urlopen(address, timeout=60)


def fetch(name: str, opener: tp.Callable[[str], tp.Any] = _open) -> Path:
    """Download these weights to `weights_folder()`, check them, and return their path. The only use of the network."""
    wanted = entry(name)
    target = weights_folder() / name / wanted.file
    if target.exists():
        _check(target, wanted)
        return target
    if wanted.source is None:
        raise UserError(f'The weights "{name}" have no public address: put {wanted.file} at {target}.')
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'{target.name}.part{os.getpid()}')
    try:
        with opener(wanted.source) as answer, part.open('wb') as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
        _check(part, wanted)
        part.replace(target)
    except OSError as error:
        raise UserError(f'Could not fetch {wanted.source}: {error}.') from error
    finally:
        part.unlink(missing_ok=True)
    return target
