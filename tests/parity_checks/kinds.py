"""Which kinds of fixtures there are, and how files and folders are put together to fixtures."""

import dataclasses
import typing as tp
from pathlib import Path

from .base import Fixture

# Kinds with their own recordings. A name stands for every file whose stem starts with it.
KINDS: dict[str, tuple[str, ...]] = {
    'mmaudio': (
        'network', 'network_v2', 'blocks', 'joint_blocks', 'rope', 'flow_matching', 'train_steps', 'train_steps_v2net',
        'lr_schedule_default', 'posthoc_ema', 'mel_16k', 'mel_44k', 'mel_silence', 'vae', 'bigvgan_v1', 'bigvgan_v2',
        'alias_free', 'clip_tiny', 'clip_tokens', 'synchformer_visual_tiny', 'video_transforms', 'read_frames',
        'resample', 'memmap', 'partition_clips', 'sequence_config', 'binned_loss', 'constants_mel_stats', 'metrics',
        'onsets', 'eval_frontends'),
    'audiocraft': (
        'conv_table', 'seanet', 'rvq', 'encodec', 'melodyflow_codec', 'melodyflow_flow', 'melodyflow_transformer',
        'compression_step', 'adversarial', 'disc', 'losses', 'balancer', 'ema', 'lr_schedules', 'dadapt_adam',
        'audio_dataset_sampling', 'audio_utils', 'metrics', 'transformer', 'lm', 'codebook_patterns', 'conditioners',
        'condition_dropout', 'jasco', 'jasco_flow_skip', 'jasco_flow_noskip', 'export_musicgen', 'export_audiogen',
        'export_melodyflow'),
    'vall_e': ('valle_tiny', 'llama_stack', 'lora', 'samplers', 'schedules_batching'),
}
# Names and shapes of full-size state dicts, one kind each, in a folder `manifests`.
MANIFESTS: dict[str, tuple[str, ...]] = {
    'mmaudio': (
        'net_small_16k', 'net_small_44k', 'net_medium_44k', 'net_large_44k', 'net_large_44k_v2', 'vae_16k', 'vae_44k',
        'bigvgan_v1_16k', 'bigvgan_v1_16k_weightnorm_removed', 'bigvgan_v2_44khz_128band_512x',
        'clip_ViT-H-14-378-quickgelu', 'panns_cnn14_16k', 'synchformer_full_avbench', 'synchformer_visual', 'vggish'),
    'audiocraft': (
        'audiogen_medium', 'encodec_16khz_audiogen_audiocraft', 'encodec_24khz_audiocraft_true_skip_false',
        'encodec_24khz_audiocraft_yaml', 'encodec_24khz_hf', 'encodec_32khz_hf', 'encodec_32khz_musicgen_audiocraft',
        'jasco_chords_drums_small', 'melodyflow_t24_codec', 'melodyflow_t24_flow', 'msstftd_default', 'musicgen_large',
        'musicgen_medium', 'musicgen_melody_medium', 'musicgen_small', 'musicgen_stereo_small'),
    'vall_e': ('manifest_reference_ar_nar_len_full',),
}
# Files that only inform.
INFORMATION = ('resolved_configs', 'manifest_v7_full', 'manifest_default_full')
SUFFIXES = ('.safetensors', '.json')


@dataclasses.dataclass(frozen=True)
class UnknownKind:
    """A file that no kind fits."""
    path: Path

    @property
    def name(self) -> str:
        """How it is named in the output: its folder and stem."""
        return f'{system_of(self.path) or self.path.absolute().parent.name}/{self.path.stem}'


def system_of(path: Path) -> tp.Optional[str]:
    """The system that a path belongs to: the nearest folder with the name of one."""
    names = [parent.name for parent in path.absolute().parents]
    return next((name for name in names if name in KINDS), None)


def longest_prefix(stem: str, kinds: tp.Iterable[str]) -> tp.Optional[str]:
    """The longest of `kinds` that `stem` starts with, where no letter may follow: `network_a`, but not `networks`."""
    fitting = [kind for kind in kinds if stem.startswith(kind) and not stem[len(kind):len(kind) + 1].isalpha()]
    return max(fitting, key=len, default=None)


def kind_of(path: Path) -> tp.Optional[tuple[str, str]]:
    """System and kind of a file or a folder, `None` if there is none."""
    system = system_of(path)
    if system is None:
        return None
    tables = [KINDS, MANIFESTS] if path.absolute().parent.name != 'manifests' else [MANIFESTS]
    stem = path.name if path.is_dir() else path.stem
    kinds = (longest_prefix(stem, table[system]) for table in tables)
    found = next((kind for kind in kinds if kind), None)
    return (system, found) if found else None


def is_information(path: Path) -> bool:
    """Whether this file only informs, and is no fixture."""
    return path.suffix not in SUFFIXES or path.stem in INFORMATION or path.stem.endswith('_hypothetical')


def is_folder_fixture(path: Path) -> bool:
    """Whether a folder is (a part of) one fixture: `export_*` and `memmap*`."""
    return path.is_dir() and path.name.startswith(('export_', 'memmap')) and kind_of(path) is not None


def base_stem(path: Path) -> str:
    """The stem that a file shares with its companions: `X` for `X.json`, `X_grads.json`, `X_contents.safetensors`."""
    if path.is_dir():
        return path.name
    if path.stem.endswith('_grads') and path.suffix == '.json':
        return path.stem.removesuffix('_grads')
    if path.stem.startswith('memmap'):
        return path.stem.removesuffix('_contents')
    return path.stem


def role_of(path: Path) -> str:
    """The part that a file plays in its fixture."""
    if path.is_dir():
        return 'folder'
    for role in ('grads', 'contents'):
        if path.stem.endswith(f'_{role}') and base_stem(path) != path.stem:
            return role
    return path.suffix.removeprefix('.')


def _join_memmaps(groups: dict[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    """Put all `memmap*` of a folder into one fixture, unless there are several complete ones."""
    memmaps = {stem: files for stem, files in groups.items() if stem.startswith('memmap')}
    if len(memmaps) < 2 or all(len(files) == 3 for files in memmaps.values()):
        return groups
    joined = {role: path for files in memmaps.values() for role, path in files.items()}
    return {stem: files for stem, files in groups.items() if stem not in memmaps} | {min(memmaps): joined}


def group_folder(folder: Path) -> list[tp.Union[Fixture, UnknownKind]]:
    """The fixtures that lie directly in a folder, with their companions."""
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_folder_fixture(path) or (path.is_file() and not is_information(path)):
            groups.setdefault(base_stem(path), {})[role_of(path)] = path
    items: list[tp.Union[Fixture, UnknownKind]] = []
    for _, files in sorted(_join_memmaps(groups).items()):
        roles = [role for role in ('safetensors', 'json', 'folder') if role in files]
        main = files[roles[0]] if roles else next(iter(files.values()))
        found = kind_of(main)
        items.append(Fixture(*found, main, files) if found else UnknownKind(main))
    return items


def _paths(item: tp.Union[Fixture, UnknownKind]) -> set[Path]:
    return set(item.files.values()) if isinstance(item, Fixture) else {item.path}


def find_in(path: Path) -> list[tp.Union[Fixture, UnknownKind]]:
    """All fixtures in a folder and below, or the one that a file or folder belongs to."""
    if path.is_file() or is_folder_fixture(path):
        if path.is_file() and path.suffix in SUFFIXES and is_information(path):
            return []
        return [item for item in group_folder(path.parent) if path in _paths(item)] or [UnknownKind(path)]
    items = group_folder(path)
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.name.startswith('.') and not is_folder_fixture(folder):
            items += find_in(folder)
    return items


def find_fixtures(paths: tp.Iterable[Path]) -> list[tp.Union[Fixture, UnknownKind]]:
    """All fixtures of some files and folders, each once."""
    found = {item.path: item for path in paths for item in find_in(path.absolute())}
    return list(found.values())
