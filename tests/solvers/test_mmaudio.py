"""The MMAudio solver on stores with and without pictures, and the controls that change what it sees."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiocraft.data.samples import Clip
from audiocraft.data.store_dataset import Batch
from audiocraft.data.store_writer import StoreWriter
from audiocraft.data.video import Video
from audiocraft.environment import AudioCraftEnvironment
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


# The sizes of MMAudio's own stores.
OF_44K = {'mean': ((345, 40), torch.float32), 'std': ((345, 40), torch.float32),
          'clip_features': ((64, 1024), torch.float32), 'sync_features': ((192, 768), torch.float32),
          'text_features': ((77, 1024), torch.float32)}


def silent(path: Path, keys: dict, rows: int) -> Path:
    """A store without facts, as those of MMAudio are."""
    store(path, keys, rows).with_name(f'{path.name}.facts.json').unlink()
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


def test_pictures_of_zeros_are_none(tmp_path: Path) -> None:
    path = store(tmp_path / 'sound', VIDEO, 6)
    path.with_name('sound.facts.json').unlink()
    for key in ('clip_features', 'sync_features'):
        (path / f'{key}.memmap').write_bytes(bytes((path / f'{key}.memmap').stat().st_size))
    run = runner(tmp_path, path, store(tmp_path / 'video', VIDEO, 4))
    with run.solver('null_condition.probability=0', 'optim.updates_per_epoch=12') as solver:
        assert solver.data.video_store.name == 'video'
        expected = solver.data.stores[1].tensors['mean'].mean((0, 1))
        assert torch.allclose(solver.model.latent_mean.flatten(), expected)
        solver.run()
        assert solver.model.empty_clip_feat.abs().max() > 0


def test_sound_and_words_alone(tmp_path: Path) -> None:
    """The sizes of the features that no store has are MMAudio's, or those of the model to go on from."""
    sound = store(tmp_path / 'sound', SOUND, 6)
    solver = runner(tmp_path / 'a', sound).run()
    assert solver.model.empty_clip_feat.shape == (1, 1024) and solver.model.clip_seq_len == 8
    assert solver.model.empty_sync_feat.abs().max() > 0
    video = runner(tmp_path / 'b', store(tmp_path / 'video', VIDEO, 6)).run()
    other = runner(tmp_path / 'c', sound)
    with other.solver(f'continue_from={video.folder}') as solver:
        assert solver.model.empty_clip_feat.shape == (1, 5) and solver.model.clip_seq_len == 4
        solver.run()
        assert torch.equal(solver.model.latent_mean, video.model.latent_mean), 'of the weights, not of the new store'


def test_codes_are_refused(tmp_path: Path) -> None:
    keys = {key: spec for key, spec in VIDEO.items() if key not in ('mean', 'std')}
    with pytest.raises(UserError, match='no store has the latents "mean"'):
        runner(tmp_path, store(tmp_path / 'video', keys, 6)).run()


def test_videos_without_captions(tmp_path: Path) -> None:
    keys = {key: spec for key, spec in VIDEO.items() if key != 'text_features'}
    solver = runner(tmp_path, store(tmp_path / 'video', keys, 6)).run()
    assert solver.model.empty_string_feat.shape == (77, 1024)


def test_losses_by_time(tmp_path: Path) -> None:
    solver = runner(tmp_path, store(tmp_path / 'video', VIDEO, 40)).run('optim.epochs=2', 'dataset.batch_size=8')
    first, second = (epoch['valid'] for epoch in solver.history)
    bins = sorted(key for key in first if key.startswith('loss_t'))
    assert 10 < len(bins) <= 25 and bins == sorted(key for key in second if key.startswith('loss_t'))
    assert all(first[key] > 0 for key in bins)
    assert not any(key.startswith('loss_t') for key in solver.history[0]['train'])


def test_the_same_noise_each_time(tmp_path: Path) -> None:
    solver = runner(tmp_path, store(tmp_path / 'video', VIDEO, 10)).run('optim.epochs=2', 'optim.lr=0')
    assert solver.history[0]['valid']['loss'] == solver.history[1]['valid']['loss']


def test_the_last_epoch_is_tested_with_the_final_average(tmp_path: Path) -> None:
    path = store(tmp_path / 'video', VIDEO, 6)
    run = runner(tmp_path, path)
    solver = run.run('optim.epochs=2', 'optim.updates_per_epoch=4', 'optim.ema.snapshot_every=4', 'evaluate.every=1',
                     'optim.ema.output_sigma=0.08', 'evaluate.metrics=null', f'dset.test.stores=[{path}]')
    first, second = (epoch['evaluate'] for epoch in solver.history)
    assert not any(key.startswith('test/') for key in first)
    assert second['test/loss'] == pytest.approx(second['loss'], rel=0.2) and second['test/loss'] != second['loss']
    scores = json.loads((run.xp_folder / 'test-output_metrics.json').read_text())
    assert scores['loss'] == second['test/loss']
    name, final = 'final_layer.conv.weight', load_file(run.xp_folder / 'final.safetensors')
    assert torch.allclose(final[name], solver.ema.synthesize(0.08)['model'][name])


def test_the_final_average_is_of_all_updates(tmp_path: Path) -> None:
    """Also where their number is no multiple of `snapshot_every`."""
    run = runner(tmp_path, store(tmp_path / 'video', VIDEO, 6))
    solver = run.run('optim.updates_per_epoch=8', 'optim.ema.snapshot_every=5', 'evaluate.every=1',
                     'evaluate.metrics=null', f'dset.test.stores=[{tmp_path}/video]')
    assert [snapshot['step'] for snapshot in solver.ema.snapshots] == [5, 5, 8, 8]
    name, final = 'final_layer.conv.weight', load_file(run.xp_folder / 'final.safetensors')
    assert torch.allclose(final[name], solver.ema.averaged()['model'][name]), 'the narrower of the two, as it is'
    with pytest.raises(UserError, match='sigma_rel must lie between'):
        run.run('optim.ema.output_sigma=0.3')


def test_an_unknown_sampler_is_named_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='sampling.method=rk9: expected one of euler'):
        runner(tmp_path, store(tmp_path / 'video', VIDEO, 6)).run('sampling.method=rk9')


def test_published_weights_are_scored_on_the_test_set(tmp_path: Path) -> None:
    path = store(tmp_path / 'video', VIDEO, 6)
    trained, other = runner(tmp_path / 'a', path), runner(tmp_path / 'b', path)
    trained.run()
    with other.solver(f'continue_from={trained.xp_folder}', f'dset.test.stores=[{path}]', 'evaluate.metrics=null',
                      'execute_only=evaluate') as solver:
        results = solver.run_one_stage('evaluate')
    assert results['test/loss'] == pytest.approx(results['loss'], rel=0.2)


def test_samples_of_the_same_id_are_all_kept(tmp_path: Path) -> None:
    """Data sets of sound have several captions for a clip."""
    with runner(tmp_path, store(tmp_path / 'video', VIDEO, 4)).solver() as solver:
        clips = [Clip('a', torch.zeros(1, 16000), 16000, caption=str(i)) for i in range(3)]
        solver.write_samples(clips, [None] * 3)
    found = {path.stem: json.loads(path.read_text())['caption'] for path in tmp_path.rglob('generate/0/*.json')}
    assert found == {'a': '0', 'a~2': '1', 'a~3': '2'}


def test_a_store_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MMAudio's own: rates, codec and extractors are those of `latents`, the empty text is read from its file."""
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    (tmp_path / 'weights' / 'ext_weights').mkdir(parents=True)
    empty = torch.randn(1, 77, 1024)
    torch.save(empty, tmp_path / 'weights' / 'ext_weights' / 'empty_string.pth')
    path = silent(tmp_path / 'video', OF_44K, 4)
    solver = runner(tmp_path, path).run('latents=44k')
    assert torch.equal(solver.model.empty_string_feat, empty[0])
    assert solver.facts['codec'] == '//pretrained/mmaudio/vae_44k' and solver.facts['sample_rate'] == 44100
    recorded = tmp_path / 'weights' / 'ext_weights' / 'empty_string.pth'
    other = runner(tmp_path / 'other', path)
    torch.save(empty[:, :, :7], recorded)
    with pytest.raises(UserError, match='the empty caption are 77 x 7, those of the stores 77 x 1024'):
        other.run('latents=44k')
    recorded.write_text('damaged')
    with pytest.raises(UserError, match='Cannot read .*empty_string.pth'):
        other.run('latents=44k')
    recorded.unlink()
    with pytest.raises(UserError, match='(?s)empty_string.pth.*Or, to compute them:'):
        other.run('latents=44k')


def test_latents_of_the_other_codec_are_refused(tmp_path: Path) -> None:
    path = silent(tmp_path / 'video', OF_44K, 4)
    with pytest.raises(UserError, match='345 x 40.*latents=16k stands for 250 x 20. They are those of latents=44k'):
        runner(tmp_path, path).run('latents=16k')
    with pytest.raises(UserError, match='latents=48k: expected 16k or 44k'):
        runner(tmp_path, path).run('latents=48k')


def test_missing_stores_are_named_at_once(tmp_path: Path) -> None:
    run = runner(tmp_path, store(tmp_path / 'video', VIDEO, 4))
    with pytest.raises(UserError) as error:
        run.run(f'dset.train.stores=[{tmp_path}/gone]', f'dset.valid.stores=[{tmp_path}/away]',
                f'dset.evaluate.stores=[{tmp_path}/away]')
    assert str(error.value).splitlines() == [f'{tmp_path}/{name}: there is no such store.' for name in ('gone', 'away')]


def test_stages_of_other_sizes_are_refused(tmp_path: Path) -> None:
    train = store(tmp_path / 'video', VIDEO, 4)
    other = store(tmp_path / 'other', {**VIDEO, 'mean': ((12, 4), torch.float32), 'std': ((12, 4), torch.float32)}, 4)
    bare = store(tmp_path / 'bare', {key: spec for key, spec in VIDEO.items() if key != 'std'}, 4)
    run = runner(tmp_path, train)
    with pytest.raises(UserError, match='dset.valid.stores: "mean" is 12 x 4 .*the network takes 10 x 4'):
        run.run(f'dset.valid.stores=[{other}]')
    with pytest.raises(UserError, match='dset.evaluate.stores: .*bare has no latents "std"'):
        run.run(f'dset.evaluate.stores=[{bare}]', 'evaluate.every=1')
    with pytest.raises(UserError, match='dset.train.stores: .*bare has no latents "std"'):
        run.run(f'dset.train.stores=[{train},{bare}]')
    with pytest.raises(UserError, match='no store has the latents "std"'):
        run.run('dset.train.keys=[mean,text_features]')


def test_a_missing_codec_is_named_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    run = runner(tmp_path, store(tmp_path / 'video', VIDEO, 6))
    with pytest.raises(UserError, match='No store says which compression model.*\n.*evaluate.every=0 generate.every=0'):
        run.run('generate.every=null', 'evaluate.every=null')
    with pytest.raises(UserError, match='(?s)which generate will need.*vae_16k.*bigvgan_16k'):
        run.run('generate.every=1', 'codec=//pretrained/mmaudio/vae_16k')
    with pytest.raises(UserError, match='which generate will need, is not there:\nThere is no .*nowhere'):
        run.run('generate.every=1', f'codec={tmp_path}/nowhere')
    assert not list((run.xp_folder / 'checkpoints').glob('*'))
    assert run.run().update == 3, 'a training step needs none'
    other = runner(tmp_path / 'other', tmp_path / 'video')
    assert other.run('evaluate.every=1', 'evaluate.metrics=null').update == 3, 'losses need none'


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


def test_only_what_is_needed_is_opened(tmp_path: Path) -> None:
    """Without evaluate and generate, their stores need not be there; switching them on later is the same XP."""
    path = store(tmp_path / 'video', VIDEO, 6)
    run = runner(tmp_path, path)
    absent = ['dset.evaluate.stores=[nowhere]', 'dset.generate.stores=[nowhere]']
    run.run(*absent, 'optim.epochs=1')
    with pytest.raises(UserError, match='nowhere'):
        run.run(*absent, 'evaluate.every=1', 'evaluate.metrics=null')
    solver = run.run('evaluate.every=1', 'evaluate.metrics=null', allow_config_change=True)
    assert 'evaluate' in solver.history[0]


def test_the_cache_of_the_truth_may_be_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('AUDIOCRAFT_REFERENCE_DIR', str(tmp_path))
    AudioCraftEnvironment.reset()
    run = runner(tmp_path, store(tmp_path / 'video', VIDEO, 6))
    with run.solver('metric=fd_vgg', 'dset.evaluate.gt_cache=//reference/caches/vgg-val') as solver:
        metric = solver.build_metrics('evaluate')['fd_vgg']
        assert metric.cache.folder == tmp_path / 'caches' / 'vgg-val'
