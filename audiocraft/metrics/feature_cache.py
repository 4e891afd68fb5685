"""Folders of features, one file for each network, as av-benchmark keeps them: `{id: tensor}` in files of torch."""

import functools
import json
import re
import typing as tp
from pathlib import Path

import torch

from ..data.files import replaced
from ..data.media import require_file
from ..models.published.files import read_file
from ..utils.errors import UserError
from .networks import Features

# (network, source) -> file -> the feature in it; None where the file holds all of them by name.
LAYOUT: dict[tuple[str, str], dict[str, str | None]] = {
    ('panns', 'audio'): {'pann_features.pth': None},
    ('vggish', 'audio'): {'vggish_features.pth': 'embedding'},
    ('passt', 'audio'): {'passt_features_embed.pth': 'embedding', 'passt_logits.pth': 'logits'},
    ('imagebind', 'audio'): {'imagebind_audio.pth': 'embedding'},
    ('imagebind', 'video'): {'imagebind_video.pth': 'embedding'},
    ('synchformer', 'audio'): {'synchformer_audio.pth': 'embedding'},
    ('synchformer', 'video'): {'synchformer_video.pth': 'embedding'},
    ('clap_laion', 'audio'): {'clap_laion_audio.pth': 'embedding'},
    ('clap_laion', 'text'): {'clap_laion_text.pth': 'embedding'},
    ('clap_ms', 'audio'): {'clap_ms_audio.pth': 'embedding'},
    ('clap_ms', 'text'): {'clap_ms_text.pth': 'embedding'},
}
# Dims of the features that are no vector: windows of VGGish, segments of Synchformer.
DIMS = {'vggish': 2, 'synchformer': 3}
MISSING_CACHE = 'skipped_missing_cache: '
ABOUT = 'audiocraft.json'  # which weights made the features; av-benchmark does not look at it

_VGGSOUND = r'.{11}_\d{6}'
_DECORATED = (re.compile(rf'(?:\d{{9}}_)?({_VGGSOUND})-\d'), re.compile(rf'Y({_VGGSOUND})_\d'))


def clean_sample_name(name: str) -> str:
    """The id in a name of a generated file, where av-benchmark finds one: `000000014_zxpo56cpUBU_000007-0` and
    `zxpo56cpUBU_000007-0` are clip `zxpo56cpUBU_000007`, `Y---g-f_I2yQ_000001_0` is `---g-f_I2yQ_000001`."""
    found = next((match for pattern in _DECORATED if (match := pattern.fullmatch(name))), None)
    return found[1] if found else name


NAMES: dict[str, tp.Callable[[str], str]] = {'exact': str, 'av_benchmark': clean_sample_name}
"""How the name of a generated file becomes the id of the true one."""


class FeatureCache:
    """One such folder, read and written.

    Args:
        folder (str or Path): the folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def missing(self, network: str, source: str) -> str:
        """Why features are not there, or ''."""
        absent = [file for file in self._layout(network, source) if not (self.folder / file).is_file()]
        return f'{MISSING_CACHE}{self.folder} has no {" and no ".join(absent)}' if absent else ''

    def about(self) -> dict[str, dict[str, tp.Any]]:
        """`{'<network> <source>': {'sha256', 'seconds'}}`: which weights made its features, of how much of each clip.

        {} for a folder that is not of ours.
        """
        path = self.folder / ABOUT
        try:
            found = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
            return {key: {'sha256': str(made['sha256']), 'seconds': float(made['seconds'])}
                    for key, made in found.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f'{path} is damaged ({type(error).__name__}: {error}): delete the folder, and make its '
                            'features again.') from None

    def read(self, network: str, source: str, *, partial: bool = False) -> dict[str, Features]:
        """The features of all ids.

        Args:
            network, source (str): whose features.
            partial (bool): take the ids that all files have, where a writing was interrupted.
        Raises:
            UserError: a file is missing, damaged, or something else.
        """
        parts: dict[str, Features] = {}
        files = self._layout(network, source)
        tables = {file: _read_file(self.folder / file, _stamp(self.folder / file)) for file in files}
        first, ids = next(iter(tables)), set.intersection(*map(set, tables.values()))
        for file, feature in files.items():
            if len(ids) < len(tables[file]) and not partial:
                raise UserError(f'{self.folder / file} and {first} hold different ids: make them again.')
            for id in (id for id in tables[first] if id in ids):
                entry = self._entry(tables[file][id], feature, DIMS.get(network, 1), file, id)
                parts.setdefault(id, {}).update(entry)
        self._check_alike(parts, first)
        return parts

    def _check_alike(self, parts: dict[str, Features], file: str) -> None:
        """Refuse a table whose entries are not all of one network."""
        dims = {id: {name: part.shape[-1] for name, part in features.items()} for id, features in parts.items()}
        usual = next(iter(dims.values()), {})
        other = next((id for id, found in dims.items() if found != usual), None)
        if other is not None:
            raise UserError(f'{self.folder / file}: the entry "{other}" has features of other dims than those before '
                            f'it ({dims[other]}, not {usual}): make them again.')

    def write(self, network: str, source: str, features: tp.Mapping[str, Features]) -> None:
        """Write the features of all ids; each file is whole or not there."""
        for file, feature in self._layout(network, source).items():
            table = {id: dict(one) if feature is None else one[feature] for id, one in features.items()}
            with replaced(self.folder / file) as temporary:
                try:
                    torch.save(table, temporary)
                except RuntimeError as error:  # how torch says that a disk is full
                    raise UserError(f'cannot write {self.folder / file}: {str(error).splitlines()[0]} '
                                    '(is there space left?)') from error

    @staticmethod
    def _layout(network: str, source: str) -> dict[str, str | None]:
        if (network, source) not in LAYOUT:
            raise UserError(f'av-benchmark keeps no {source} features of "{network}" (it keeps '
                            f'{", ".join(f"{one} {two}" for one, two in LAYOUT)}).')
        return LAYOUT[network, source]

    def _entry(self, value: tp.Any, feature: str | None, dims: int, file: str, id: str) -> Features:
        parts = {feature: value} if feature is not None else value
        if not isinstance(parts, dict) or not all(isinstance(part, torch.Tensor) for part in parts.values()):
            raise UserError(f'{self.folder / file}: the entry "{id}" is no feature of a network (a '
                            f'{type(value).__name__}): is this a cache of av-benchmark?')
        for name, part in parts.items():
            while part.dim() > dims and part.shape[0] == 1:  # a batch of one
                part = part[0]
            if part.dim() != dims or not part.is_floating_point():
                raise UserError(f'{self.folder / file}: the entry "{id}" has the shape {list(part.shape)} and dtype '
                                f'{part.dtype}, expected {dims} dims of real numbers.')
            parts = {**parts, name: part.float()}
        return parts


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        raise UserError(f'{path.parent} has no {path.name}: `python -m audiocraft feature_cache` makes it.') from None


@functools.lru_cache(maxsize=4)
def _read_file(path: Path, changed: int) -> dict[str, tp.Any]:
    """The table of a file, kept for the metrics that share it (`changed` is part of the key only)."""
    try:
        table = read_file(require_file(path))
    except UserError as error:
        raise UserError(f'{path} is no file of features, or damaged. {error}') from error
    if not isinstance(table, dict) or not table or not all(isinstance(id, str) for id in table):
        raise UserError(f'{path} is no cache of features: a table from ids to tensors was expected, it holds '
                        f'{"nothing" if table == {} else f"a {type(table).__name__}"}.')
    return table
