"""MMAudio's own way in miniature, by its commands: from the list of a data set to training, test and fine-tuning.

CLIP, Synchformer and the network are tiny and random, but every command and config is the one of full size.
"""

import csv
import json
import re
import typing as tp
from pathlib import Path

import pytest
import torch

from audiocraft.models.loaders import load_model
from audiocraft.models.published.mmaudio import published_facts
from audiocraft.utils.checkpoint import load_latest

from .chain import Chain, signature_in

pytestmark = pytest.mark.integ

CLIP = ('{embed_dim: 1024, vision_cfg: {image_size: 28, layers: 1, width: 16, head_width: 8, patch_size: 14}, '
        'text_cfg: {context_length: 77, vocab_size: 49408, width: 1024, heads: 2, layers: 1}}').replace(' ', '')
TINY = [f'extractors.image.model={CLIP}', 'extractors.image.weights=null', 'extractors.image.size=28',
        f'extractors.text.model={CLIP}', 'extractors.text.weights=null', 'extractors.motion.weights=null',
        'extractors.motion.size=32', '+extractors.motion.network={dim:768,depth:1,num_heads:2,mlp_ratio:1}']
CODEC = ['solver=compression/mel_vae_mp_debug', 'num_threads=1', 'model.latent_dim=20', 'model.griffin_lim_iter=2',
         'dset.train.media=videos', 'dset.valid.media=videos', 'dset.evaluate.media=videos',
         'dset.generate.media=videos', 'optim.epochs=1', 'optim.updates_per_epoch=2', 'dataset.batch_size=2',
         'schedule.warmup=1', 'evaluate.every=0', 'generate.every=0']
NETWORK = ['num_threads=1', 'compile=false', 'model.hidden_dim=32', 'model.num_heads=2', 'model.depth=2',
           'model.fused_depth=1', 'dataset.batch_size=2', 'dataset.evaluate.batch_size=2', 'dataset.num_workers=1',
           'dataset.generate.num_samples=1', 'sampling.steps=2', 'logging.log_updates=1', 'checkpoint.save_every=1']
SCORES = ('FD-VGG', 'FD-PANN', 'FD-PASST', 'KL-PANNS-softmax', 'KL-PASST-softmax', 'ISC-PANNS-mean', 'ISC-PASST-mean',
          'IB-Score', 'DeSync', 'LAION-CLAP-Score', 'MS-CLAP-Score')


class World(Chain):
    """A folder with videos named as VGGSound's, the list of the data set, and the stores that are made of them."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.audiocraft('make_example', '--kind', 'video', '--out', 'videos', '--clips', 12, '--seed', 1,
                        '--seconds', 2, '--workers', 1)
        captions = [row[1] for row in csv.reader((folder / 'videos' / 'captions.tsv').open(), delimiter='\t')][1:]
        with (folder / 'vggsound.csv').open('w', newline='') as file:
            for i, caption in enumerate(captions):
                (folder / 'videos' / f'clip_{i:05d}.mp4').rename(folder / 'videos' / f'-id{i:08d}_{i:06d}.mp4')
                csv.writer(file).writerow([f'-id{i:08d}', i, caption, 'train' if i < 9 else 'test'])
            csv.writer(file).writerow(['gone0000000', 30, 'a video that nobody has any more', 'test'])
        self.codec = signature_in(self.audiocraft('run', *CODEC))
        self.audiocraft('captions', '--kind', 'vggsound', '--source', 'vggsound.csv', '--output_dir', 'tables',
                        '--valid', 3)
        for part, name in (('train', 'vgg-train'), ('valid', 'vgg-val'), ('test', 'vgg-test')):
            level = [] if part == 'train' else ['normalize_audio=false']
            self.outputs[name] = self.audiocraft(
                'extract', '--config', 'video_mmaudio_16k', '--data_dir', 'videos', '--captions_tsv',
                f'tables/{part}.tsv', '--output_dir', f'reference/mmaudio_16k/{name}', '--codec', f'//sig/{self.codec}',
                '--duration', 2, '--num_workers', 1, '--batch_size', 2, *level, *TINY)

    def environment(self, dora_dir: str = 'outputs') -> dict[str, str]:
        """With the reference folder, and no weights but those that a test puts there."""
        return {**super().environment(dora_dir), 'AUDIOCRAFT_REFERENCE_DIR': str(self.folder / 'reference'),
                'AUDIOCRAFT_WEIGHTS': str(self.folder / 'weights')}

    def history(self, sig: str) -> list[dict[str, tp.Any]]:
        return json.loads((self.xp(sig) / 'history.json').read_text())


@pytest.fixture(scope='module')
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp('mmaudio'))


@pytest.fixture(scope='module')
def trained(world: World) -> str:
    """Two epochs of `solver=mmaudio/small_16k`, started by torchrun; validated, scored and tested."""
    output = world.launch('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1', '-m', 'audiocraft.train',
                          'solver=mmaudio/small_16k', *NETWORK, 'optim.epochs=2', 'optim.updates_per_epoch=2',
                          'schedule.warmup=2', 'optim.ema.snapshot_every=2', 'evaluate.every=2', 'generate.every=2')
    world.outputs['trained'] = output
    return signature_in(output)


def test_a_missing_video_is_named(world: World) -> None:
    rejected = (world.folder / 'reference' / 'mmaudio_16k' / 'vgg-test.rejected.tsv').read_text()
    assert 'gone0000000_000030' in rejected and 'missing' in rejected


def test_missing_stores_are_named_and_left_out(world: World, trained: str) -> None:
    for name in ('audiocaps', 'audioset_sl', 'bbcsound', 'freesound', 'clotho'):
        assert f'no store //reference/mmaudio_16k/{name}' in world.outputs['trained']


def test_scores_without_weights_are_null_with_a_reason(world: World, trained: str) -> None:
    first, second = world.history(trained)
    assert 'evaluate' not in first and first['valid']['loss'] > 0
    assert any(name.startswith('loss_t') for name in first['valid'])
    scores = json.loads((world.xp(trained) / 'test-output_metrics.json').read_text())
    for name in SCORES:
        assert scores[name] is None and scores[f'{name}_reason'].startswith('skipped_missing_'), name
    assert second['evaluate']['test/loss'] == scores['loss'] and (world.xp(trained) / 'final.safetensors').exists()
    assert list((world.xp(trained) / 'generate').rglob('*.wav'))


def test_evaluate_in_place(world: World, trained: str) -> None:
    before = (world.xp(trained) / 'checkpoints').stat().st_mtime
    output = world.launch('-m', 'dora', 'run', '-f', trained, 'execute_only=evaluate', 'execute_inplace=true')
    assert f'XP {trained}' in output and (world.xp(trained) / 'checkpoints').stat().st_mtime == before


def test_two_processes_are_the_same_xp(world: World, trained: str) -> None:
    output = world.launch('-m', 'dora', 'run', '-d', '--ddp_workers', 2, 'solver=mmaudio/small_16k', *NETWORK,
                          'optim.epochs=2', 'optim.updates_per_epoch=2', 'schedule.warmup=2',
                          'optim.ema.snapshot_every=2', 'evaluate.every=2', 'generate.every=2')
    assert signature_in(output) == trained


def test_second_version_trains(world: World) -> None:
    stores = [f'dset.{stage}.stores=["//reference/mmaudio_16k/vgg-{name}"]' for stage, name in
              (('train', 'train'), ('valid', 'val'), ('evaluate', 'val'), ('generate', 'test'))]
    output = world.audiocraft('run', 'solver=mmaudio/large_44k_v2', 'dset=none', *stores, *NETWORK, 'optim.epochs=1',
                              'optim.updates_per_epoch=2', 'evaluate.every=0', 'generate.every=0',
                              'activation_checkpointing=true', 'optim.accumulate=2')
    assert world.history(signature_in(output))[0]['train']['loss'] > 0


@pytest.fixture(scope='module')
def published(world: World, trained: str) -> Path:
    """The weights in the form of a published file, where `//pretrained/mmaudio/small_16k` finds them."""
    state = load_model(world.xp(trained)).state_dict()
    state |= {'t_embed.freqs': torch.zeros(128), 'latent_rot': torch.zeros(1), 'clip_rot': torch.zeros(1)}
    path = world.folder / 'weights' / 'weights' / 'mmaudio_small_16k.pth'
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def test_fine_tuning_from_published_weights(world: World, trained: str, published: Path) -> None:
    output = world.audiocraft('run', 'solver=mmaudio/small_16k', 'dset=vggsound', *NETWORK, 'optim.epochs=1',
                              'optim.updates_per_epoch=1', 'optim.lr=0', 'evaluate.every=0', 'generate.every=0',
                              'continue_from=//pretrained/mmaudio/small_16k')
    sig = signature_in(output)
    checkpoint = load_latest(world.xp(sig) / 'checkpoints', set_aside=False)
    assert sig != trained and checkpoint is not None
    expected = load_model(world.xp(trained)).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in checkpoint.models['model'].items())


def test_published_weights_without_the_others(world: World, published: Path) -> None:
    """All weights that are missing are named at once."""
    output = world.audiocraft('generate', '--xp', '//pretrained/mmaudio/small_16k', '--video',
                              next((world.folder / 'videos').glob('*.mp4')), '--out', 'sound.wav', code=1)
    for name in ('clip_dfn5b', 'synchformer', 'mmaudio/vae_16k'):
        assert name in output
    assert not (world.folder / 'sound.wav').exists()
    assert published_facts(16_000)['codec'] == '//pretrained/mmaudio/vae_16k'


@pytest.mark.parametrize('given', [['--prompt', 'rain'], ['--video', 'VIDEO'],
                                   ['--video', 'VIDEO', '--prompt', 'a dog']])
def test_generate(world: World, trained: str, given: list[str]) -> None:
    video = str(next((world.folder / 'videos').glob('*.mp4')))
    out = world.folder / f'made{len(given)}{given[0]}.wav'
    world.audiocraft('generate', '--xp', trained, *[video if part == 'VIDEO' else part for part in given], '--steps', 2,
                     '--out', out)
    assert out.stat().st_size > 2 * 16_000 * 2


def test_full_size_models(tmp_path: Path) -> None:
    """A second of video through CLIP, Synchformer, VAE, the network and BigVGAN at their full size, one by one."""
    output = Chain(tmp_path).launch(Path(__file__).parents[2] / 'benchmarks' / 'mmaudio.py', '--parts', 'clip',
                                    '--seconds', 1)
    for line in ('mean [1, 20, 32]', 'clip_features [1, 8, 1024]', 'sync_features [1, 16, 768]',
                 'text_features [1, 77, 1024]', 'latents [1, 32, 20]', 'mel [1, 80, 64]', 'sound [1, 1, 16000]'):
        assert line in output, output
    most = re.search(r'at most ([\d.]+) GiB', output)
    assert most and float(most[1]) < 8, output
