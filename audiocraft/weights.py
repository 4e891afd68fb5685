"""The registry of external weights: what there is, who needs it, and where it lies on this machine.

Nothing here is downloaded by training or evaluation. A weight is looked for, in this order: at the path given in the
config; in `$AUDIOCRAFT_WEIGHTS/<name>/`, first what `import_weights` made there (`model.safetensors`); where MMAudio
keeps it, if `AUDIOCRAFT_WEIGHTS` is its checkout, or the folder `ext_weights` or `weights` of that; in the local cache
of the Hugging Face hub. Only `fetch` touches the network.
"""

import hashlib
import json
import logging
import os
import re
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
        digest (str or None): `sha256:...` (or the first digits of it), or `md5:...` where that is what its authors
            publish; None where they publish none that we know, so that nothing can be compared.
        licence (str): the licence of the weights.
        used_by (str): what needs it.
        beside (tuple of str): small files of the same folder that it cannot be read without (a config).
        instead (tuple of str): other names of the file, in other formats, that will do as well.
        layout (str or None): its path in the checkout of its authors' code, which reads it from there.
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
    layout: str | None = None

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


CONVERTED = 'model.safetensors'  # what `import_weights` makes of any other file, ...
RECORD = 'source.json'           # ... and what it says of it
_NC = 'CC-BY-NC 4.0'
_MMAUDIO_HUB = 'hkchengrex/MMAudio'


def _mmaudio(name: str, path: str, md5: str | None, used_by: str, url: str | None = None) -> Entry:
    """One of the files that MMAudio keeps in its checkout at `path`, which is that on the hub, too."""
    return Entry(name, path.rpartition('/')[2], md5 and f'md5:{md5}', _NC, used_by, url=url, layout=path,
                 repo=None if url else _MMAUDIO_HUB, repo_file=None if url else path)


def _network(variant: str, md5: str) -> Entry:
    return _mmaudio(f'mmaudio/{variant}', f'weights/mmaudio_{variant}.pth', md5, f'model mmaudio, variant {variant}')


def _encodec(rate: str, used_by: str) -> Entry:
    return Entry(f'encodec_{rate}', 'model.safetensors', None, _NC, used_by, repo=f'facebook/encodec_{rate}',
                 beside=('config.json',), instead=('pytorch_model.bin',))


def _codec(name: str, repo: str, used_by: str) -> Entry:
    return Entry(name, 'compression_state_dict.bin', None, _NC, used_by, repo=repo)


_ENTRIES = [
    _network('small_16k', 'af93cde404179f58e3919ac085b8033b'),
    _network('small_44k', 'babd74c884783d13701ea2820a5f5b6d'),
    _network('medium_44k', '5a56b6665e45a1e65ada534defa903d0'),
    _network('large_44k', 'fed96c325a6785b85ce75ae1aafd2673'),
    _network('large_44k_v2', '01ad4464f049b2d7efdaa4c1a59b8dfe'),
    _mmaudio('mmaudio/vae_16k', 'ext_weights/v1-16.pth', '69f56803f59a549a1a507c93859fd4d7',
             'the mel VAE of mmaudio at 16 kHz'),
    _mmaudio('mmaudio/vae_44k', 'ext_weights/v1-44.pth', 'fab020275fa44c6589820ce025191600',
             'the mel VAE of mmaudio at 44.1 kHz'),
    _mmaudio('mmaudio/bigvgan_16k', 'ext_weights/best_netG.pt', 'eeaf372a38a9c31c362120aba2dde292',
             'the vocoder of mmaudio at 16 kHz'),
    _mmaudio('mmaudio/empty_string', 'ext_weights/empty_string.pth', None,
             'stores of mmaudio without facts: the features of the empty text',
             'https://github.com/hkchengrex/MMAudio/releases/download/v0.1/empty_string.pth'),
    Entry('bigvgan_v2_44khz', 'bigvgan_generator.pt', None, 'MIT', 'the vocoder of mmaudio at 44.1 kHz',
          repo='nvidia/bigvgan_v2_44khz_128band_512x', beside=('config.json',)),
    _mmaudio('synchformer', 'ext_weights/synchformer_state_dict.pth', '5b2f5594b0730f70e41e549b7c94390c',
             'the motion features of mmaudio, and metric desync'),
    Entry('clip_dfn5b', 'open_clip_pytorch_model.bin', None, 'Apple (research)',
          'the features of pictures and words of mmaudio', repo='apple/DFN5B-CLIP-ViT-H-14-384',
          instead=('open_clip_model.safetensors',)),
    Entry('panns_cnn14_16k', 'Cnn14_16k_mAP=0.438.pth', None, 'CC-BY 4.0', 'FD, KL and ISC on PANNs',
          url='https://zenodo.org/record/3987831/files/Cnn14_16k_mAP%3D0.438.pth'),
    # Its name gives the first digits of its sha256.
    Entry('vggish', 'vggish-10086976.pth', 'sha256:10086976', 'Apache 2.0', 'FD on VGGish',
          url='https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth'),
    Entry('passt', 'passt-s-f128-p16-s10-ap.476-swa.pt', None, 'Apache 2.0', 'FD and KL on PaSST',
          url='https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt'),
    Entry('clap_laion', 'music_speech_audioset_epoch_15_esc_89.98.pt', None, 'CC0 1.0', 'CLAP score (LAION)',
          repo='lukewys/laion_clap'),
    Entry('clap_ms', 'CLAP_weights_2023.pth', None, 'MIT', 'CLAP score (Microsoft)', repo='microsoft/msclap'),
    Entry('imagebind', 'imagebind_huge.pth', None, 'CC-BY-NC-SA 4.0', 'ImageBind score',
          url='https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth'),
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


def entry_of_file(file: str) -> Entry | None:
    """The entry whose file has this name, if there is exactly one."""
    found = [candidate for candidate in _ENTRIES if file == candidate.file]
    return found[0] if len(found) == 1 else None


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


def _as_authors_keep_it(wanted: Entry) -> Path | None:
    """The file in a checkout of its authors' code that `AUDIOCRAFT_WEIGHTS` names, or one of whose folders it names."""
    if wanted.layout is None:
        return None
    root = weights_folder()
    theirs = {'weights', 'ext_weights'}
    paths = [root / wanted.layout, root / wanted.file, *([root.parent / wanted.layout] if root.name in theirs else [])]
    return next((path for path in paths if path.is_file()), None)


def find_original(name: str) -> Path | None:
    """The file as its authors publish it, whether or not `import_weights` has made another of it; None if missing."""
    wanted = entry(name)
    home = wanted.in_folder(weights_folder() / wanted.name, wanted.file)
    return home or _as_authors_keep_it(wanted) or next(iter(_hub_snapshots(wanted)), None)


def is_name(name: str) -> bool:
    """Whether weights can have this name: words with slashes between them, which lead out of no folder."""
    return all(re.fullmatch(r'\w[\w.=-]*', part) for part in name.split('/'))


def _converted(name: str, beside: tuple[str, ...] = ()) -> Path | None:
    """What `import_weights` made, of the registry or under a name of one's own."""
    folder = weights_folder() / name
    whole = all((folder / file).exists() for file in (CONVERTED, *beside))
    return folder / CONVERTED if whole else None


def _of_own(name: str) -> Path | None:
    """Imported weights that are not in the registry."""
    if not is_name(name) or any(candidate.name == name for candidate in _ENTRIES):
        return None
    return _converted(name)


def find(name: str, path: str | Path | None = None) -> Path:
    """The file of these weights on this machine; `path` (from a config) goes first. Raises `UserError` if missing."""
    if path is not None:
        given = Path(path).expanduser()
        if not given.exists():
            raise UserError(f'The weights "{name}" should be at {given}, where there is nothing.')
        return given
    if (own := _of_own(name)) is not None:
        return own
    wanted = entry(name)
    found = _converted(wanted.name, wanted.beside) or find_original(wanted.name)
    if found is not None:
        return found
    home = weights_folder() / wanted.name
    also = f' with {" and ".join(wanted.beside)} beside it' if wanted.beside else ''
    theirs = f', {weights_folder() / wanted.layout}' if wanted.layout else ''
    cache = f' or {_hub_cache(wanted.repo)}' if wanted.repo else ''
    raise UserError(f'The weights "{wanted.name}" ({wanted.used_by}) are not on this machine (not in {home}{theirs}'
                    f'{cache}): put {wanted.file} at {home / wanted.file}{also}, or run '
                    f'`python -m audiocraft weights fetch {wanted.name}` (licence: {wanted.licence}).')


def _digest(path: Path, kind: str) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, kind).hexdigest()


def verify(name: str) -> Path:
    """Check the digest of these weights and return their path. Raises `UserError` if missing or different."""
    path = find(name)
    record = path.with_name(RECORD)
    if path.name == CONVERTED and record.is_file():
        _check_converted(path, record)
    else:
        _check(path, entry(name))
    return path


def _check(path: Path, wanted: Entry) -> None:
    if wanted.digest is None:
        logger.warning('%s: its authors publish no digest that we know, so that it was not compared.', path)
        return
    if path.name != wanted.file and path.name in wanted.instead:
        logger.warning('%s: the digest that its authors publish is of %s, so that it was not compared.', path,
                       wanted.file)
        return
    if (problem := difference(path, wanted)) is not None:
        raise UserError(f'{path} is not the published "{wanted.name}": {problem}. Delete it and fetch it again.')


def difference(path: Path, wanted: Entry) -> str | None:
    """How the digest of a file differs from the published one, in words; None where it does not, or there is none."""
    if wanted.digest is None:
        return None
    kind, expected = wanted.digest.split(':')
    got = _digest(path, kind)
    return None if got.startswith(expected) else f'its {kind} is {got}, expected {expected}'


def _check_converted(path: Path, record: Path) -> None:
    """Compare what `import_weights` made with the digest that it wrote down."""
    try:
        said = json.loads(record.read_text(encoding='utf-8'))
        expected, source = str(said['sha256']), str(said['source'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{record} does not say what {path.name} was made of: {error!r}. Import it again.') from error
    if (got := _digest(path, 'sha256')) != expected:
        raise UserError(f'{path} is not what was made of {source}: its sha256 is {got}, expected {expected}. Import it '
                        'again with --force.')


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
