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
        name (str): how configs and commands call it (`//pretrained/NAME`; the name of a `repo` that only one entry
            has will do too).
        file (str): its file name.
        repo (str or None): repository on the Hugging Face hub, with `repo_file` the path in it.
        url (str or None): where `fetch` takes it from when there is no repository.
        digest (str or None): `sha256:...`, or `md5:...` where that is what its authors publish; None where they publish
            none that we know, so that nothing can be compared.
        licence (str): the licence of the weights.
        used_by (str): what needs it.
        beside (tuple of str): small files of the same folder that it cannot be read without (a config).
        instead (tuple of str): other names of the file, in other formats, that will do as well.
    """

    name: str
    file: str
    digest: str | None
    licence: str
    used_by: str
    repo: str | None = None
    repo_file: str | None = None
    url: str | None = None
    beside: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()

    def address(self, file: str) -> str | None:
        """Where a file of the repository is."""
        return f'https://huggingface.co/{self.repo}/resolve/main/{file}' if self.repo else None

    @property
    def source(self) -> str | None:
        """The address that `fetch` reads."""
        return self.address(self.repo_file or self.file) or self.url

    def in_folder(self, folder: Path, file: str) -> Path | None:
        """The file in a folder, or what does instead, if all that belongs to it is there."""
        for name in (file, *self.instead):
            path = folder / name
            if path.exists() and all((path.parent / other).exists() for other in self.beside):
                return path
        return None


_NC = 'CC-BY-NC 4.0'
_MMAUDIO_HUB = 'hkchengrex/MMAudio'


def _mmaudio(variant: str, md5: str) -> Entry:
    file = f'mmaudio_{variant}.pth'
    return Entry(f'mmaudio_{variant}', file, f'md5:{md5}', _NC, f'model mmaudio, variant {variant}',
                 repo=_MMAUDIO_HUB, repo_file=f'weights/{file}')


def _encodec(rate: str, used_by: str) -> Entry:
    return Entry(f'encodec_{rate}', 'model.safetensors', None, _NC, used_by, repo=f'facebook/encodec_{rate}',
                 beside=('config.json',), instead=('pytorch_model.bin',))


def _codec(name: str, repo: str, used_by: str) -> Entry:
    return Entry(name, 'compression_state_dict.bin', None, _NC, used_by, repo=repo)


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
    _encodec('24khz', 'the causal EnCodec of the paper, up to 24 kb/s'),
    _encodec('32khz', 'the codec of MusicGen'),
    _encodec('48khz', 'the stereo EnCodec of the paper'),
    _codec('audiogen_codec', 'facebook/audiogen-medium', 'the codec of AudioGen'),
    _codec('melodyflow_codec', 'facebook/melodyflow-t24-30secs', 'the continuous codec of MelodyFlow'),
]


def entries() -> list[Entry]:
    """All external weights, in the order of the registry."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry with this name, or of this repository. Raises `UserError`, with the names there are, without one."""
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    of_repo = [candidate for candidate in _ENTRIES if candidate.repo == name]
    if len(of_repo) == 1:
        return of_repo[0]
    names = ', '.join(candidate.name for candidate in _ENTRIES)
    raise UserError(f'There are no weights called "{name}" in the registry; it has {names}.')


def weights_folder() -> Path:
    """`$AUDIOCRAFT_WEIGHTS`, or `~/.cache/audiocraft/weights`."""
    chosen = os.environ.get('AUDIOCRAFT_WEIGHTS')
    return Path(chosen).expanduser() if chosen else Path.home() / '.cache' / 'audiocraft' / 'weights'


def _hub_cache(repo: str) -> Path:
    """Where the local hub cache keeps a repository."""
    cache = os.environ.get('HF_HUB_CACHE') or Path(os.environ.get('HF_HOME') or '~/.cache/huggingface') / 'hub'
    return Path(cache).expanduser() / f'models--{repo.replace("/", "--")}'


def _hub_snapshots(wanted: Entry) -> list[Path]:
    """Where the local hub cache holds this file, newest first."""
    if wanted.repo is None:
        return []
    folders = (_hub_cache(wanted.repo) / 'snapshots').glob('*')
    found = [path for folder in folders if (path := wanted.in_folder(folder, wanted.repo_file or wanted.file))]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def find(name: str, path: str | Path | None = None) -> Path:
    """The file of these weights on this machine; `path` (from a config) goes first. Raises `UserError` if missing."""
    if path is not None:
        given = Path(path).expanduser()
        if not given.exists():
            raise UserError(f'The weights "{name}" should be at {given}, where there is nothing.')
        return given
    wanted = entry(name)
    home = weights_folder() / wanted.name
    for candidate in [wanted.in_folder(home, wanted.file), *_hub_snapshots(wanted)]:
        if candidate is not None:
            return candidate
    also = f' with {" and ".join(wanted.beside)} beside it' if wanted.beside else ''
    cache = f' or {_hub_cache(wanted.repo)}' if wanted.repo else ''
    raise UserError(f'The weights "{wanted.name}" ({wanted.used_by}) are not on this machine (not in {home}{cache}): '
                    f'put {wanted.file} at {home / wanted.file}{also}, or run '
                    f'`python -m audiocraft weights fetch {wanted.name}` (licence: {wanted.licence}).')


def _digest(path: Path, kind: str) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, kind).hexdigest()


def verify(name: str) -> Path:
    """Check the digest of these weights and return their path. Raises `UserError` if missing or different."""
    path = find(name)
    _check(path, entry(name))
    return path


def _check(path: Path, wanted: Entry) -> None:
    if wanted.digest is None:
        logger.warning('%s: its authors publish no digest that we know, so that it was not compared.', path)
        return
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
    target = weights_folder() / wanted.name / wanted.file
    for other in wanted.beside:
        if not target.with_name(other).exists() and (address := wanted.address(other)):
            _download(address, target.with_name(other), opener)
    if target.exists():
        _check(target, wanted)
        return target
    if wanted.source is None:
        raise UserError(f'The weights "{name}" have no public address: put {wanted.file} at {target}.')
    return _download(wanted.source, target, opener, wanted)


def _download(address: str, target: Path, opener: tp.Callable[[str], tp.Any], wanted: Entry | None = None) -> Path:
    """Download a file, whole or not at all; with an entry its digest is compared first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'{target.name}.part{os.getpid()}')
    try:
        with opener(address) as answer, part.open('wb') as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
        if wanted is not None:
            _check(part, wanted)
        part.replace(target)
    except OSError as error:
        raise UserError(f'Could not fetch {address}: {error}.') from error
    finally:
        part.unlink(missing_ok=True)
    return target
