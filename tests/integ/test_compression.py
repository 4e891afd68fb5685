"""A codec by the user's own commands: sounds, training, export, a store of codes; killed, and on damaged files."""

import gzip
import json
import math
import re
import signal
import typing as tp
from pathlib import Path

import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir

from audiocraft.data.audio import read_audio, write_audio
from audiocraft.data.store import Store
from audiocraft.environment import CONFIG_ROOT
from audiocraft.models.loaders import load_compression_model
from audiocraft.utils.checkpoint import list_checkpoints, load_latest
from audiocraft.utils.config import build

from .chain import ROOT, Chain, differences, outcome, signature_in

pytestmark = pytest.mark.integ

CLIPS = {'train': 6, 'valid': 2, 'test': 2}
CODEC = ['solver=compression/debug', 'dset.root=data/sounds', 'num_threads=1', 'model.seanet.n_filters=4',
         'model.seanet.ratios=[5,4]', 'model.quantizer.dimension=8', 'model.quantizer.bins=16', 'dataset.batch_size=4',
         'dataset.segment_duration=0.1', 'dataset.eval_duration=0.5', 'optim.epochs=2', 'optim.updates_per_epoch=4',
         'schedule.warmup=1', 'logging.log_updates=1', 'checkpoint.save_every=3']
UPDATES = 8
ADVERSARIAL = [*CODEC, 'adversarial=msstftd_tiny', 'adversarial.every=2', 'losses=waveform', 'evaluate.every=0',
               'generate.every=0']
SHORT = ['optim.epochs=1', 'evaluate.every=0', 'generate.every=0']


@pytest.fixture(scope='module')
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Sounds, and a codec trained on them."""
    chain = Chain(tmp_path_factory.mktemp('codec'))
    for seed, (part, clips) in enumerate(CLIPS.items(), 1):
        chain.audiocraft('make_example', '--kind', 'audio', '--out', f'data/sounds/{part}', '--clips', clips,
                         '--seed', seed, '--seconds', 1.3, '--workers', 1)
    chain.outputs['codec'] = chain.launch('-m', 'dora', 'run', *CODEC)
    chain.codec = signature_in(chain.outputs['codec'])
    return chain


def results(xp: Path, stage: str = 'evaluate') -> dict[str, tp.Any]:
    """What the last run of a stage found."""
    return json.loads(max((xp / stage).glob('*.json'), key=lambda path: int(path.stem)).read_text())['metrics']


# -- from sounds to codes ----------------------------------------------------------------------------------------------

def test_training_leaves_scores_samples_and_a_page(chain: Chain) -> None:
    xp = chain.xp(chain.codec)
    scores = results(xp)
    assert scores.keys() >= {'loss', 'si_snr', 'untrained/si_snr', 'mel_distance', 'codebook_use', 'codebook_use_3'}
    assert scores['bitrate'] == pytest.approx(4 * 4 * 800 / 1000)
    assert list_checkpoints(xp / 'checkpoints')[-1].name == str(UPDATES)
    samples = sorted((xp / 'generate' / str(UPDATES)).iterdir())
    assert [path.suffix for path in samples] == ['.json', '.png', '.wav'] * CLIPS['test']
    record = json.loads(samples[0].read_text())
    truth = (samples[0].parent / record['reference']).resolve()
    assert truth.parent == (chain.folder / 'data' / 'sounds' / 'test').resolve() and truth.is_file()
    assert samples[0].stem in (xp / 'samples' / 'index.html').read_text()
    assert 'ViSQOL' in chain.outputs['codec'] and 'Traceback' not in chain.outputs['codec']


def test_export_and_a_store_of_codes(chain: Chain) -> None:
    """The codec of the XP and the exported one give the same codes, and these decode to the same sound."""
    given = chain.launch(ROOT / 'scripts' / 'export.py', chain.codec, '--out', 'given').splitlines()[-1]
    assert given == 'given' and {path.name for path in (chain.folder / given).iterdir()} == {
        'model.safetensors', 'model.json', 'config.yaml', 'compression_state_dict.bin', 'README.md'}
    for name, codec in (('xp', f'//sig/{chain.codec}'), ('given', 'given')):
        chain.audiocraft('extract', '--config', 'audio_codes', '--data_dir', 'data/sounds/test', '--captions_tsv',
                         'data/sounds/test/captions.tsv', '--output_dir', f'stores/{name}', '--codec', codec,
                         'duration=1', 'min_duration=0.2')
    stores = [Store(chain.folder / 'stores' / name) for name in ('xp', 'given')]
    assert 'sound.' in chain.audiocraft('check', '--deep', 'stores/xp', 'stores/given')
    assert len(stores[0]) == 2 * CLIPS['test'] and stores[0].lengths('codes').tolist() == [800, 240] * CLIPS['test']
    assert stores[0].facts['num_codebooks'] == 4 and stores[0].facts['codebook_size'] == 16
    model = load_compression_model(chain.folder / 'given')
    for number, id in enumerate(stores[0].ids):
        codes = stores[0].item('codes', number)
        assert torch.equal(codes, stores[1].item('codes', number)), id
    wav, rate = read_audio(chain.folder / 'data' / 'sounds' / 'test' / f'{stores[0].ids[0].split("#")[0]}.wav')
    assert rate == model.sample_rate
    expected = model.encode(wav[None, :, :rate]).codes
    codes = torch.as_tensor(stores[0].item('codes', 0)).long().T[None]
    assert torch.equal(codes, expected)
    assert model.decode(codes, num_samples=rate).shape == (1, 1, rate)
    of_audiocraft = load_compression_model(chain.folder / 'given' / 'compression_state_dict.bin')
    assert torch.equal(of_audiocraft.encode(wav[None, :, :rate]).codes, expected)


@pytest.mark.parametrize('name, rows', [('debug', 8), ('encodec_musicgen_32khz', 5)])
def test_grids(chain: Chain, name: str, rows: int) -> None:
    output = chain.launch('-m', 'dora', 'grid', f'compression.{name}', '--dry_run', '--init', dora_dir=f'grid_{name}')
    assert output.count('N/A') == rows and f'compression.{name}' in output, output
    assert len(list(chain.xp('', f'grid_{name}').iterdir())) == rows


def test_the_table_of_the_page() -> None:
    """Rates, codes and sizes of the variants are those of the configs, and all of them are there."""
    page = (ROOT / 'docs' / 'COMPRESSION.md').read_text(encoding='utf-8').split('## Variants')[1].split('## ')[0]
    cells = [[cell.strip() for cell in line.split('|')] for line in page.splitlines() if line.startswith('| `')]
    rows = {row[1].strip('`'): row[2:7] for row in cells if '=' not in row[1]}
    names = {path.stem for path in (CONFIG_ROOT / 'solver' / 'compression').glob('*.yaml')} - {'default'}
    assert rows.keys() == names
    for name, (audio, frames, content, bitrate, parameters) in rows.items():
        with initialize_config_dir(str(CONFIG_ROOT), version_base='1.3'):
            cfg = compose('config', [f'solver=compression/{name}'])
        with torch.device('meta'):
            model = build(cfg.model)
        assert audio.replace(', stereo', '') == f'{model.sample_rate / 1000:g} kHz', name
        assert ('stereo' in audio) == (model.channels == 2), name
        assert float(frames) == pytest.approx(model.frame_rate, abs=0.01), name
        assert re.findall(r'\d+', content) == [
            str(number) for number in ((model.num_codebooks, model.codebook_size) if model.is_discrete
                                       else (model.latent_dim,))], name
        if model.is_discrete:
            kilobits = model.num_codebooks * math.log2(model.codebook_size) * model.frame_rate / 1000
            assert float(bitrate) == pytest.approx(kilobits), name
        assert float(parameters.split()[0]) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, rel=0.02)


# -- killed ------------------------------------------------------------------------------------------------------------

def test_killed_and_resumed_equals_uninterrupted(chain: Chain) -> None:
    """With discriminators and a balancer, `kill -9` in the middle of an epoch, some updates after a checkpoint."""
    whole = signature_in(chain.audiocraft('run', *ADVERSARIAL))
    expected = outcome(chain.xp(whole))
    assert any(name.startswith('.models.discriminators.') for name in expected)
    chain.interrupt('train:6', 'SIGKILL', 'run', *ADVERSARIAL, dora_dir='killed', code=-signal.SIGKILL)
    assert list_checkpoints(chain.xp(whole, 'killed') / 'checkpoints')[-1].name == '4'
    output = chain.audiocraft('run', *ADVERSARIAL, dora_dir='killed')
    assert f'{UPDATES} updates' in output.split('Finished')[1]
    assert differences(outcome(chain.xp(whole, 'killed')), expected) == []


# -- several processes ------------------------------------------------------------------------------------------------

def test_two_processes_train_what_one_does(chain: Chain) -> None:
    """Of latents: the first entries of codebooks are clusters of what the first process sees."""
    overrides = ['solver=compression/vae_melodyflow_debug', *(part for part in CODEC[1:] if '.bins=' not in part),
                 'adversarial=msstftd_tiny', 'losses=waveform', *SHORT]
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '-m', 'audiocraft.train']
    one = signature_in(chain.audiocraft('run', *overrides))
    two = signature_in(chain.launch(*launcher, *overrides, dora_dir='two'))
    assert one == two
    a, b = (load_latest(chain.xp(one, folder) / 'checkpoints').models for folder in ('outputs', 'two'))
    for name in ('model', 'discriminators'):
        for key, value in a[name].items():
            torch.testing.assert_close(b[name][key], value, atol=1e-3, rtol=1e-2, msg=f'{name} {key}')


# -- damaged and odd files ---------------------------------------------------------------------------------------------

ODD = {'eight': (8, 16_000), 'high': (1, 192_000)}
HEADERS = {'text.wav': b'not a sound\n' * 50, 'empty.wav': b''}


@pytest.fixture(scope='module')
def damaged(chain: Chain) -> Path:
    """Folders of sounds that are odd (and fine), damaged where the header shows it, and damaged inside."""
    root = chain.folder / 'data' / 'damaged'
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(1)) * 0.1
    for folder in ('odd', 'inside'):
        write_audio(root / folder / 'good.wav', noise, 16_000)
    for name, (channels, rate) in ODD.items():
        write_audio(root / 'odd' / f'{name}.wav', noise.expand(channels, -1).repeat(1, rate // 16_000), rate)
    write_audio(root / 'odd' / 'one_sample.wav', noise[:, :1], 16_000)
    for name, content in HEADERS.items():
        (root / 'odd' / name).write_bytes(content)
    soundfile.write(root / 'odd' / 'no_samples.wav', torch.zeros(0, 1).numpy(), 16_000)
    bad = noise[0].clone()
    bad[4000:12_000] = float('nan')
    soundfile.write(root / 'inside' / 'nan.wav', bad.numpy(), 16_000, subtype='FLOAT')
    whole = root / 'inside' / 'cut.wav'
    write_audio(whole, noise, 16_000)
    whole.write_bytes(whole.read_bytes()[:3000])
    return root


def manifest(path: Path, *files: Path, duration: float = 1.) -> Path:
    lines = [json.dumps({'path': str(file), 'duration': duration, 'sample_rate': 16_000}) + '\n' for file in files]
    path.write_bytes(gzip.compress(''.join(lines).encode()) if path.suffix == '.gz' else ''.join(lines).encode())
    return path


def data(**media: Path) -> list[str]:
    """Overrides that name the media of some stages."""
    return [f'dset.{stage}.media={path}' for stage, path in media.items()]


EACH_FILE = ['dataset.sample_on_duration=false', 'dataset.sample_on_weight=false', 'dataset.permutation_on_files=true']


def test_odd_files_are_used_and_broken_ones_named(chain: Chain, damaged: Path) -> None:
    """Training: absolute and relative paths in a manifest; the broken ones are replaced. Valid: 8 channels, 192 kHz."""
    inside = damaged / 'inside'
    lines = manifest(damaged / 'train.jsonl.gz', inside / 'good.wav', Path('inside/nan.wav'), Path('inside/cut.wav'))
    output = chain.audiocraft('run', *CODEC, *SHORT, *EACH_FILE, *data(train=lines, valid=damaged / 'odd'))
    assert 'nan.wav: not finite' in output and 'cut.wav: too short' in output
    assert '2 of 3 files could not be read' in output
    for name in (*HEADERS, 'no_samples.wav'):
        assert f'{name}: ' in output, name
    assert 'Traceback' not in output
    history = json.loads((chain.xp(signature_in(output)) / 'history.json').read_text())
    assert all(value == value and value is not None for value in history[0]['valid'].values()), history


def test_a_manifest_of_files_that_are_gone(chain: Chain, damaged: Path) -> None:
    lines = manifest(damaged / 'gone.jsonl', damaged / 'inside' / 'good.wav', damaged / 'nowhere.wav', Path('else.wav'))
    output = chain.audiocraft('run', *CODEC, *SHORT, *data(train=lines), code=1)
    message = output.split('error: ')[1]
    assert 'gone.jsonl: 2 of 3 files do not exist' in message and 'nowhere.wav' in message and 'else.wav' in message


def test_listing_and_extracting_damaged_files(chain: Chain, damaged: Path) -> None:
    """The manifest leaves out what is broken; the store of codes holds what can be used, and says what cannot."""
    output = chain.audiocraft('manifest', 'data/damaged', 'listed.jsonl.gz', '--complete')
    assert 'listed.jsonl.gz: 6 files' in output and '4 broken files left out' in output, output
    for name in (*HEADERS, 'no_samples.wav', 'nan.wav'):
        assert f'{name}: ' in output, name
    broken = manifest(chain.folder / 'extract.jsonl', *sorted(damaged.glob('*/*.wav')))
    chain.audiocraft('extract', '--manifest', broken.name, '--output_dir', 'stores/damaged', '--codec',
                     f'//sig/{chain.codec}', 'duration=1', 'min_duration=0.5')
    store = Store(chain.folder / 'stores' / 'damaged')
    assert sorted(Path(row['path']).name for row in store.rows) == ['eight.wav', 'good.wav', 'good.wav', 'high.wav']
    rejected = (chain.folder / 'stores' / 'damaged.rejected.tsv').read_text()
    for name, reason in {'text': 'unreadable', 'empty': 'empty', 'no_samples': '', 'nan': 'not finite', 'cut': '',
                         'one_sample': 'too short'}.items():
        assert any(line.startswith(name) and reason in line for line in rejected.splitlines()), (name, rejected)
