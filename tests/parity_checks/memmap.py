"""The published layout of stores: what is read from it, alone and mixed, and that ours has the same bytes."""

import ast
import json
import tempfile
import typing as tp
from pathlib import Path

import torch

from audiocraft.data.loaders import StoreLoader
from audiocraft.data.mixture import Mixture
from audiocraft.data.store import Store, check_store
from audiocraft.data.store_writer import StoreWriter

from .base import Fixture, Report

# What the recorded items call the keys of the store.
RENAMED = {'a_mean': 'mean', 'a_std': 'std'}


def open_stores(folder: Path) -> dict[str, Store]:
    """The stores of the recording by the first word of their names."""
    return {path.stem.split('-')[0]: Store(path) for path in sorted(folder.glob('*.tsv'))}


def item_description(batch: tp.Any, keys: tp.Iterable[str]) -> dict[str, str]:
    """Shape and dtype of each recorded tensor for the only item of a batch, nulls filled in."""
    described = {}
    for name in keys:
        key = RENAMED.get(name, name)
        tensor = batch.fill(key, torch.zeros(()))[0]
        described[name] = f'{tensor.dtype}{list(tensor.shape)}'
    return described


def dims(store: Store) -> dict[str, int]:
    """Lengths and sizes of latents and features under their recorded names."""
    shapes = {name: store.keys[f'{name}_features'][0] for name in ('clip', 'sync', 'text')}
    found = {f'{name}_{part}': shape[axis] for name, shape in {**shapes, 'latent': store.keys['mean'][0]}.items()
             for axis, part in enumerate(('seq_len', 'dim'))}
    return found


def check_contents(stores: dict[str, Store], fixture: Fixture, report: Report) -> None:
    """Every tensor, bit for bit, and no key more or less."""
    contents = fixture.load('contents' if 'contents' in fixture.files else 'safetensors')
    found = {f'{name}.{key}': tensor for name, store in stores.items() for key, tensor in store.tensors.items()}
    report.equal('keys', sorted(found), sorted(contents))
    for name in found.keys() & contents.keys():
        report.close(name, found[name], contents[name], tolerance=0.)


def check_items(mixture: Mixture, expected: tp.Mapping[str, tp.Any], report: Report) -> None:
    """One item with video and one without, as the loader gives them."""
    for kind in ('video', 'audio'):
        item = expected[f'{kind}_item_keys']
        recorded = {name: text for name, text in item.items() if text.startswith('torch.float')}
        id, caption = (ast.literal_eval(item[name]) for name in ('id', 'caption'))
        loader = StoreLoader(mixture, batch_size=1, threads=0)
        batch = next(loader.iterate(mixture.ids.index(id)))
        report.equal(f'{kind}.id', batch.ids, [id])
        report.equal(f'{kind}.caption', batch.captions, [caption])
        report.equal(f'{kind}.shapes', item_description(batch, recorded), recorded)
        report.equal(f'{kind}.video_exist', bool(batch.exists('clip_features')[0]), kind == 'video')
        report.equal(f'{kind}.text_exist', bool(batch.exists('text_features')[0]), True)


def check_rewritten(store: Store, meta: dict[str, tp.Any], report: Report) -> None:
    """The same items, written by us, are the same bytes in every tensor file and the same meta.json."""
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(Path(folder) / store.name, keys=store.keys, ids=store.ids)
        for row, id in enumerate(store.ids):
            writer.add(id, {'caption': store.captions[row]}, {key: store.tensors[key][row] for key in store.keys})
        ours = writer.finish()
        for path in sorted(store.files.folder.glob('*.memmap')):
            same = (ours.files.folder / path.name).read_bytes() == path.read_bytes()
            report.check(f'{store.name}/{path.name} rewritten', same, 'has other bytes')
        found = json.loads((ours.files.folder / 'meta.json').read_text())
        report.equal(f'{store.name}/meta.json rewritten', found, meta)


def check_memmap(fixture: Fixture, report: Report) -> None:
    """Stores, their mixture in the recorded order, latent statistics, items and the files that we write."""
    folder, expected = fixture.files['folder'], fixture.json
    stores = open_stores(folder)
    for store in stores.values():
        report.equal(f'{store.name} problems', check_store(store.files.folder, deep=True), [])
    check_contents(stores, fixture, report)
    files = [path for path in folder.rglob('*') if path.is_file()]
    described = [f'{path.relative_to(folder)} {path.stat().st_size}B' for path in files]
    report.equal('files', sorted(described), sorted(expected['files']))
    video, audio = sorted(stores.values(), key=lambda store: 'clip_features' not in store.keys)
    report.equal('lengths', [len(video), len(audio)], [expected['len_vgg'], expected['len_audio']])
    report.equal('dims', dims(video), {**expected['dims'], 'latent_dim': expected['latent_dim']})
    mixture = Mixture([{'path': video.files.folder, 'repeat': 2}, audio])
    report.equal('length of the mixture', len(mixture), expected['len_mm(vggx2+audio)'])
    report.equal('order', mixture.ids, expected['order_ids'])
    mean, std = mixture.latent_stats()
    report.close('latent_mean', mean, expected['latent_mean'])
    report.close('latent_std', std, expected['latent_std_unbiased'])
    check_items(mixture, expected, report)
    for store in stores.values():
        check_rewritten(store, expected['meta_json'][store.name], report)


CHECKS = {'mmaudio/memmap': check_memmap}
