"""Extraction by the user's command: killed (-9) at seeded points, and with the configs of MMAudio in miniature."""

import random

import pytest
import torch

from audiocraft.data.manifest import read_table
from audiocraft.data.store import Store, check_store
from audiocraft.data.video import write_video

from .chain import Chain
from .extraction import BAD, CLIPS, KILLED, PATIENCE, Extraction

pytestmark = pytest.mark.integ


@pytest.fixture(scope='module')
def extraction(tmp_path_factory):
    return Extraction(tmp_path_factory.mktemp('extraction'))


def test_what_comes_out(extraction):
    store = Store(extraction.folder / 'stores' / 'whole')
    assert check_store(store.files.folder, deep=True) == []
    assert (len(store), len(read_table(store.files.rejected))) == (CLIPS, BAD + 1)


@pytest.mark.parametrize('seed, kind', [(0, 'item'), (1, 'finish'), (2, 'outside')])
def test_killed_and_started_again(extraction, seed, kind):
    name, dice = f'killed_in_{kind}', random.Random(seed)
    if kind == 'outside':
        assert extraction.kill_from_outside(name, dice.randint(3, CLIPS - 3)) == KILLED
    else:
        place = dice.randint(4 if kind == 'item' else 1, extraction.points[kind])
        extraction.interrupt(f'{kind}:{place}', 'SIGKILL', 'extract', *extraction.args(name), code=KILLED)
    before = extraction.journaled(name) if extraction.partial(name).exists() else CLIPS
    assert before >= 3, 'there is something to go on from'
    extraction.audiocraft('extract', *extraction.args(name))
    assert extraction.found(name) == extraction.found('whole') and not extraction.partial(name).exists()


@pytest.mark.parametrize('victim', [0, 1])
def test_one_of_two_processes_is_killed(extraction, victim):
    """The first one waits for the second one, which is started again; a second one does not need the first."""
    name = f'process_{victim}_killed'
    processes = [extraction.start(name, 'item:5' if rank == victim else '-', rank, 2) for rank in (0, 1)]
    assert processes[victim].wait(PATIENCE) == KILLED
    if victim == 0:
        assert processes[1].wait(PATIENCE) == 0
    else:
        assert processes[0].poll() is None
    assert not (extraction.folder / 'stores' / name).exists()
    processes[victim] = extraction.start(name, '-', victim, 2)
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    assert extraction.found(name) == extraction.found('whole')


# -- the configs of MMAudio, with networks of the right interfaces and random weights ----------------------------------

CODEC = ('{_target_: audiocraft.models.mp_mel_vae.MPMelVAE, sample_rate: 44100, n_fft: 2048, hop: 512, n_mels: 16, '
         'fmax: 22050., log: ln, latent_dim: 40, width: 8, statistics: null}')
CLIP = ('{embed_dim: 1024, quick_gelu: true, '
        'vision_cfg: {image_size: 378, patch_size: 126, width: 32, layers: 1, head_width: 16}, '
        'text_cfg: {context_length: 77, vocab_size: 49408, width: 48, heads: 2, layers: 1}}')
NETWORK = '{dim: 24, depth: 1, num_heads: 2, patch: 56}'


def tiny_clips(folder, count):
    folder.mkdir()
    for i in range(count):
        pictures = torch.full((100, 3, 36, 64), 20 + 20 * i, dtype=torch.uint8)
        pictures[::25, 0, :8] = 255
        wav = 0.3 * torch.randn(1, 8 * 44_100, generator=torch.Generator().manual_seed(i))
        write_video(folder / f'vid{i}_{30 * i:06d}.mp4', pictures, 12.5, wav, 44_100, options={'preset': 'ultrafast'})


def test_raw_folders_to_the_layout_of_mmaudio(tmp_path):
    pytest.importorskip('open_clip')
    chain = Chain(tmp_path)
    tiny_clips(tmp_path / 'videos', 3)
    rows = ['vid0,0,rain,train', 'vid1,30,"wind, far",train', 'vid2,60,rain,test', 'vid9,90,gone,train']
    (tmp_path / 'vggsound.csv').write_text('\n'.join(rows) + '\n')
    chain.audiocraft('captions', '--kind', 'vggsound', '--source', 'vggsound.csv', '--output_dir', 'sets')
    save_codec(tmp_path / 'codec')
    chain.audiocraft('extract', '--config', 'video_mmaudio_44k', '--data_dir', 'videos', '--captions_tsv',
                     'sets/train.tsv', '--output_dir', 'stores/train', '--codec', 'codec', '--device', 'cpu',
                     f'extractors.image.model={CLIP}', f'extractors.text.model={CLIP}',
                     *(f'extractors.{name}.weights=null' for name in ('image', 'motion', 'text')),
                     f'+extractors.motion.network={NETWORK}', 'num_workers=1', 'batch_size=2')
    store = Store(tmp_path / 'stores' / 'train')
    assert check_store(store.files.folder, deep=True) == []
    assert store.rows == [{'id': 'vid0_000000', 'label': 'rain', 'duration': '8'},
                          {'id': 'vid1_000030', 'label': 'wind, far', 'duration': '8'}]
    assert read_table(store.files.rejected)[0]['id'] == 'vid9_000090'
    assert {key: shape for key, (shape, _) in store.keys.items()} == {
        'mean': (345, 40), 'std': (345, 40), 'clip_features': (64, 1024), 'sync_features': (192, 24),
        'text_features': (77, 48)}
    torch.testing.assert_close(store.tensors['clip_features'][0].norm(dim=-1), torch.ones(64))


def save_codec(folder):
    from omegaconf import OmegaConf

    from audiocraft.utils.checkpoint import save_checkpoint
    from audiocraft.utils.config import build
    model = build(OmegaConf.to_container(OmegaConf.create(CODEC)))
    save_checkpoint(folder / 'checkpoints', 1, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}})
