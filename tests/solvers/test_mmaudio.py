"""The MMAudio solver on stores with and without pictures, and the controls that change what it sees."""

from pathlib import Path

import pytest
import torch

from audiocraft.data.store_dataset import Batch
from audiocraft.data.store_writer import StoreWriter
from audiocraft.data.video import Video
from audiocraft.features.controls import Conditions, Frozen, NeutralCaption, Shifted, SwappedCaption
from audiocraft.solvers.mmaudio import MMAudioSolver
from audiocraft.utils.errors import UserError
from audiocraft.utils.random import Draws

from .conftest import Runner

SOUND = {'mean': ((10, 4), torch.float32), 'std': ((10, 4), torch.float32), 'text_features': ((3, 6), torch.float32)}
VIDEO = {**SOUND, 'clip_features': ((4, 5), torch.float32), 'sync_features': ((8, 7), torch.float32)}
TINY = ['solver=mmaudio/debug', 'model.hidden_dim=16', 'model.num_heads=2', 'model.depth=2', 'model.fused_depth=1',
        'dataset.batch_size=4', 'optim.epochs=1', 'optim.updates_per_epoch=3', 'evaluate.every=0', 'generate.every=0']


def store(path: Path, keys: dict, rows: int) -> Path:
    """A store of random numbers, without facts of extractors, as MMAudio's own are."""
    writer = StoreWriter(path, keys=keys, rows=rows, facts={'duration': 1.})
    generator = torch.Generator().manual_seed(rows)
    for i in range(rows):
        writer.add(f'{path.name}{i}', {'caption': 'x'},
                   {key: torch.rand(shape, generator=generator) for key, (shape, _) in keys.items()})
    writer.close()
    writer.finish()
    return path


def runner(folder: Path, *stores: Path) -> Runner:
    listed = ','.join(map(str, stores))
    return Runner(folder, MMAudioSolver, *TINY, f'dset.train.stores=[{listed}]', f'dset.valid.stores=[{listed}]',
                  f'dset.evaluate.stores=[{listed}]', f'dset.generate.stores=[{listed}]')


def test_sound_without_pictures_trains_the_null_features(tmp_path: Path) -> None:
    run = runner(tmp_path, store(tmp_path / 'video', VIDEO, 6), store(tmp_path / 'sound', SOUND, 6))
    solver = run.run('null_condition.probability=0', 'optim.updates_per_epoch=12')
    assert solver.update == 12
    assert solver.model.empty_clip_feat.abs().max() > 0, 'items without pictures stand on the learned null'
    assert torch.equal(solver.model.empty_string_feat, torch.zeros(3, 6)), 'frozen'


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='clip_features or sync_features'):
        runner(tmp_path, store(tmp_path / 'sound', SOUND, 6)).run()


@pytest.mark.parametrize('joint', [True, False])
def test_dropped_conditions(tmp_path: Path, joint: bool) -> None:
    run = runner(tmp_path, store(tmp_path / 'video', VIDEO, 4))
    with run.solver('null_condition.probability=0.5', f'null_condition.joint={joint}') as solver:
        solver.model.empty_clip_feat.data.fill_(9.)
        solver.model.empty_sync_feat.data.fill_(9.)
        ones = {key: torch.ones(64, *shape) for key, (shape, _) in VIDEO.items()}
        batch = Batch([str(i) for i in range(64)], [''] * 64, ones)
        solver.is_training = True
        clip, sync, text = solver.drop_conditions(batch, Draws(0, 0, total=64, device='cpu'))
        no_clip, no_sync, no_text = (clip == 9).all((1, 2)), (sync == 9).all((1, 2)), (text == 0).all((1, 2))
        assert 10 < no_clip.sum() < 54 and 10 < no_text.sum() < 54
        assert torch.equal(no_clip, no_sync) is joint
        assert not torch.equal(no_clip, no_text)
        solver.is_training = False
        assert torch.equal(solver.drop_conditions(batch, Draws(0, 0, total=64, device='cpu'))[0], ones['clip_features'])


def items() -> list[Conditions]:
    frames = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2).contiguous()
    return [Conditions(str(i), Video(frames={10.: frames}, duration=1.), f'caption {i}', str(i)) for i in range(5)]


def test_controls_of_pictures() -> None:
    frozen, shifted = (control(items())[0].video.frames[10.][:, 0, 0, 0] for control in (Frozen(), Shifted(seconds=.3)))
    assert frozen.tolist() == [0] * 10
    assert shifted.tolist() == [7, 8, 9, 0, 1, 2, 3, 4, 5, 6], 'three frames late'
    assert items()[0].video.frames[10.][5, 0, 0, 0] == 5


def test_controls_of_words() -> None:
    assert {item.caption for item in NeutralCaption(text='a sound')(items())} == {'a sound'}
    swapped = SwappedCaption()(items())
    assert sorted(item.caption_of for item in swapped) == ['0', '1', '2', '3', '4']
    assert all(item.caption_of != item.id and item.caption == f'caption {item.caption_of}' for item in swapped)
