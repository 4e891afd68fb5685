"""The compression solver with EnCodecs: codes or latents, discriminators; resumed, scored, written, loaded."""

import contextlib
import json
import math
import re
import typing as tp
from pathlib import Path

import pytest
import soundfile
import torch

from audiocraft.cli import dispatch
from audiocraft.data.audio import read_audio, write_audio
from audiocraft.models.loaders import load_compression_model
from audiocraft.solvers.compression import CompressionSolver
from audiocraft.utils.config import to_plain
from audiocraft.utils.errors import UserError
from audiocraft.utils.signals import Stopped

from .conftest import Runner

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'COMPRESSION.md'
RATE = 16_000
TINY = ['solver=compression/debug', 'model.seanet.n_filters=4', 'model.seanet.ratios=[4,2]',
        'model.quantizer.dimension=8', 'dataset.batch_size=4', 'dataset.num_workers=0',
        'dataset.segment_duration=0.1', 'dataset.eval_duration=0.25', 'schedule.warmup=2', 'optim.epochs=2',
        'optim.updates_per_epoch=4', 'losses.msspec.range_end=9', 'losses.msspec.n_mels=16']
CODES = ['model.quantizer.n_q=3', 'model.quantizer.bins=16', 'model.quantizer.kmeans_iters=2']
NO_EXTRAS = ['evaluate.every=0', 'generate.every=0']
BALANCED = ['balancer={_target_: audiocraft.losses.balancer.Balancer}']
DISCRIMINATOR = 'adversarial.discriminators.msstftd.discriminator'
ADVERSARIAL = ['adversarial=msstftd_tiny', f'{DISCRIMINATOR}.filters=2', f'{DISCRIMINATOR}.n_ffts=[128,64]',
               f'{DISCRIMINATOR}.hop_lengths=[32,16]', f'{DISCRIMINATOR}.win_lengths=[128,64]']
# Numbers of time, which no two runs share.
TIMES = ('duration', 'seconds', 'speed', 'data_wait', 'eta')


@pytest.fixture(scope='module')
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train, valid and test of tones whose frequency glides, of different lengths."""
    root = tmp_path_factory.mktemp('data')
    for stage, count in (('train', 6), ('valid', 2), ('test', 2)):
        for i in range(count):
            time = torch.arange(4800 + 320 * i) / RATE
            tone = 0.4 * torch.sin(2 * torch.pi * (200 + 80 * i) * time * (1 + time)) * (0.3 + time)
            write_audio(root / stage / f'{stage}{i}.wav', tone[None], RATE)
    return root


def codec(folder: Path, media: Path, *overrides: str) -> Runner:
    return Runner(folder, CompressionSolver, *TINY, *CODES, f'dset.root={media}', *overrides)


def continuous(folder: Path, media: Path, *overrides: str) -> Runner:
    return Runner(folder, CompressionSolver, 'solver=compression/vae_melodyflow_debug', *TINY[1:],
                  f'dset.root={media}', *overrides)


def state(solver: CompressionSolver) -> dict[str, tp.Any]:
    """All that training changes, as plain containers of tensors and numbers."""
    return {name: source.state_dict() for name, source in solver.stateful.sources.items()
            if name not in ('xp.cfg', 'xp.sig')}


def leaves(tree: tp.Any, where: str = '') -> dict[str, tp.Any]:
    """Values of nested containers by dotted name, tensors as bytes; without times."""
    if isinstance(tree, torch.Tensor):
        return {where: (tuple(tree.shape), tree.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else None
    if items is None:
        return {where: repr(tree)}
    return {name: leaf for key, value in items if key not in TIMES
            for name, leaf in leaves(value, f'{where}.{key}').items()}


def differing(one: dict[str, tp.Any], other: dict[str, tp.Any]) -> list[str]:
    """Names of what differs between two states."""
    a, b = leaves(one), leaves(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name, '') != b.get(name, ''))


@contextlib.contextmanager
def stopping(solver: CompressionSolver, update: int) -> tp.Iterator[None]:
    """Ask the solver to end when an update is reached, as a signal would."""
    step = solver.run_step

    def run_step(idx: int, batch: tp.Any, metrics: dict) -> dict:
        if solver.is_training and solver.update == update:
            solver.stop.requested = 15
        return step(idx, batch, metrics)

    solver.run_step = run_step
    with pytest.raises((Stopped, SystemExit)):
        yield


def discriminator_updates(solver: CompressionSolver) -> int:
    return solver.discriminator_updater.updates


# -- a whole training --------------------------------------------------------------------------------------------------

def test_it_learns_scores_writes_and_loads(tmp_path: Path, media: Path) -> None:
    run = codec(tmp_path, media, 'optim.updates_per_epoch=10', 'optim.lr=0.01')
    solver = run.run()
    first, last = (epoch['train'] for epoch in solver.history)
    assert last['msspec'] < first['msspec'] and last['loss'] < first['loss']
    assert {'sisnr', 'l2', 'msspec', 'penalty', 'loss', 'grad_norm', 'lr', 'codebook_perplexity',
            'bandwidth'} <= last.keys()

    results = solver.history[-1]['evaluate']
    bitrate = 3 * math.log2(16) * RATE / 8 / 1000
    assert results['bitrate'] == pytest.approx(bitrate) and 0 < results['bitrate_entropy'] <= bitrate
    assert 0 < results['codebook_use'] <= 1 and results['codebook_use_frames'] == 2 * 500
    assert results['si_snr'] > results['untrained/si_snr'] + 1, 'more is better'
    assert {'mel_distance', 'stft_distance', 'untrained/stft_distance', 'codebook_perplexity_2'} <= results.keys()
    assert results['visqol'] is None and 'loss' in results

    samples = run.xp_folder / 'generate' / '20'
    assert {path.name for path in samples.iterdir()} == {
        f'test{i}.{kind}' for i in range(2) for kind in ('wav', 'json', 'png')}
    record = json.loads((samples / 'test1.json').read_text())
    assert (samples / record['reference']).resolve() == media / 'test' / 'test1.wav'
    page = (run.xp_folder / 'samples' / 'index.html').read_text()
    assert 'test0' in page and 'test1' in page

    loaded = load_compression_model(run.xp_folder)
    wav = solver.dataloaders['generate'].batch(0).audio
    codes = loaded.encode(wav).codes
    assert codes.shape == (2, 3, 500) and codes.dtype == torch.int64 and int(codes.max()) < 16
    decoded = loaded.decode(codes, num_samples=wav.shape[-1])
    written, rate = read_audio(samples / 'test0.wav')
    assert rate == RATE and written.shape == (1, 4000)
    torch.testing.assert_close(written, decoded[0], atol=1e-3, rtol=0)


def test_fewer_codebooks_are_a_lower_bitrate(tmp_path: Path, media: Path) -> None:
    run = codec(tmp_path, media, *NO_EXTRAS, 'optim.epochs=1', 'model.quantizer.q_dropout=true')
    solver = run.run()
    assert solver.history[0]['train']['bandwidth'] < 3 * 4 * 2, 'fewer codebooks were drawn in some updates'
    wav = solver.dataloaders['valid'].batch(0).audio
    model = load_compression_model(run.xp_folder)
    everything = model.encode(wav).codes
    model.set_num_codebooks(1)
    coarse = model.encode(wav).codes
    assert model.num_codebooks == 1 and torch.equal(coarse, everything[:, :1])
    assert not torch.equal(model.decode(coarse), model.decode(everything))
    with pytest.raises(ValueError, match='from 1 to 3, got 4'):
        model.set_num_codebooks(4)


def test_the_python_of_the_page(tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    run = codec(tmp_path, media, *NO_EXTRAS, 'optim.epochs=1', 'optim.updates_per_epoch=1')
    run.run()
    monkeypatch.chdir(tmp_path)
    assert dispatch.main(['export', str(run.xp_folder), '--out', 'exports/codec']) == 0
    write_audio(Path('data/audio/test/clip_00000.wav'), 0.1 * torch.randn(2, 11_025), 44_100)
    block, = re.findall(r'^<!-- a test runs this block -->\n```python\n(.*?)^```$', PAGE.read_text(encoding='utf-8'),
                        re.MULTILINE | re.DOTALL)
    exec(compile(block, str(PAGE), 'exec'), {})
    assert capsys.readouterr().out.endswith('torch.Size([1, 3, 500]) 2000.0 3 16\n')
    assert read_audio('again.wav')[0].shape == (1, 4000)


def test_continuous_latents(tmp_path: Path, media: Path) -> None:
    """A codec with a Gaussian bottleneck, chosen by the model; the statistics of its latents are tracked."""
    run = continuous(tmp_path, media,
                 'optim.updates_per_epoch=10', 'weights.penalty=0.01')
    solver = run.run()
    first, last = (epoch['train'] for epoch in solver.history)
    assert last['loss'] < first['loss'] and last['penalty'] > 0 and last['posterior_std'] > 0
    results = solver.history[-1]['evaluate']
    assert 'si_snr' in results and results['codebook_use'] is None and 'bitrate' not in results
    model = load_compression_model(run.xp_folder)
    mean, std = model.quantizer.latent_statistics()
    assert mean.shape == (8,) and float(mean.abs().max()) > 0 and not torch.equal(std, torch.ones(8))
    posterior = model.encode(torch.randn(1, 1, 800))
    assert posterior.mean.shape == (1, 8, 100) and not model.is_discrete


# -- discriminators ----------------------------------------------------------------------------------------------------

def test_discriminators_and_balancer(tmp_path: Path, media: Path) -> None:
    solver = codec(tmp_path, media, *NO_EXTRAS, *ADVERSARIAL, *BALANCED, 'weights.adv=4.', 'weights.feat=4.').run()
    assert solver.best_metric() is None and discriminator_updates(solver) == 8
    for epoch in solver.history:
        metrics = epoch['train']
        assert {'d_loss', 'd_msstftd', 'd_grad_norm', 'adv_msstftd', 'feat_msstftd', 'g_loss'} <= metrics.keys()
        assert metrics['skipped'] == metrics['d_skipped'] == 0
        assert all(math.isfinite(value) for value in metrics.values())
        assert 'd_loss' not in epoch['valid'] and 'adv_msstftd' in epoch['valid']
    assert solver.balancer.state_dict()['sums'].keys() == {'sisnr', 'l2', 'msspec', 'adv_msstftd', 'feat_msstftd'}
    with codec(tmp_path / 'new', media, *ADVERSARIAL).solver() as new:
        before = [f'.{name}' for name, _ in new.discriminators.named_parameters()]
        changed = differing(new.discriminators.state_dict(), solver.discriminators.state_dict())
    # In biases the hinge losses of both sides cancel while all logits are within the margin.
    assert [name for name in before if name not in changed and not name.endswith('.bias')] == []


def test_discriminators_alone_train_a_codec(tmp_path: Path, media: Path) -> None:
    weights = [f'weights.{name}=0.' for name in ('sisnr', 'l2', 'msspec', 'penalty')]
    solver = codec(tmp_path, media, *NO_EXTRAS, *ADVERSARIAL, *weights, 'weights.adv=1.', 'optim.epochs=1').run()
    assert solver.history[0]['train']['grad_norm'] > 0


@pytest.mark.parametrize('at', [2, 6], ids=['first_epoch', 'second_epoch'])
def test_resumed_equals_uninterrupted(tmp_path: Path, media: Path, at: int) -> None:
    """Weights, codebooks, discriminators, both optimizers, balancer, average, best state and history, to the bit."""
    options = [*NO_EXTRAS, *ADVERSARIAL, *BALANCED, 'model.quantizer.q_dropout=true', 'adversarial.every=2']
    whole = codec(tmp_path / 'whole', media, *options).run()
    part = codec(tmp_path / 'part', media, *options)
    with part.solver() as solver, stopping(solver, at):
        solver.run()
    assert solver.update == at + 1
    resumed = part.run()
    assert resumed.update == whole.update == 8
    names = state(whole).keys()
    assert {'model', 'discriminators', 'optimizer', 'discriminator_optimizer', 'balancer', 'history'} <= names
    assert any(key.endswith('_codebook.embed') for key in whole.model.state_dict())
    assert differing(state(resumed), state(whole)) == []
    assert differing(resumed.ema.averaged(), whole.ema.averaged()) == []
    assert differing(resumed.best.states, whole.best.states) == []


def test_discriminators_that_are_updated_in_half_of_the_updates(tmp_path: Path, media: Path) -> None:
    """By chance, the same one each time; the model is updated in all of them."""
    options = [*NO_EXTRAS, *ADVERSARIAL, 'adversarial.every=2', 'optim.epochs=1', 'optim.updates_per_epoch=24',
               'model.seanet.n_filters=2']
    one, other = (codec(tmp_path / name, media, *options).run() for name in 'ab')
    assert 6 <= discriminator_updates(one) <= 18 and one.updater.updates == 24
    assert differing(state(one), state(other)) == []


def test_accumulation_is_the_same_training(tmp_path: Path, media: Path) -> None:
    """For latents: the running means of codebooks see each micro-batch by itself."""
    options = ['model.quantizer.track_statistics=false', *NO_EXTRAS, 'optim.epochs=1', 'optim.updates_per_epoch=3',
               'losses=waveform', 'balancer=null']
    plain, parts = (continuous(tmp_path / name, media, *options, *more).run()
                    for name, more in (('a', []), ('b', ['optim.accumulate=2'])))
    assert plain.updater.updates == parts.updater.updates == 3
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[key], value, atol=2e-4, rtol=1e-3, msg=key)


def test_accumulation_with_codebooks_and_discriminators(tmp_path: Path, media: Path) -> None:
    options = [*NO_EXTRAS, *ADVERSARIAL, *BALANCED, 'optim.accumulate=2', 'optim.epochs=1', 'adversarial.every=2']
    solver = codec(tmp_path, media, *options).run()
    assert solver.updater.updates == 4 and solver.updater.micro == solver.discriminator_updater.micro == 0
    assert 0 < discriminator_updates(solver) <= 4
    with pytest.raises(UserError, match='accumulate'):
        codec(tmp_path / 'b', media, *NO_EXTRAS, 'optim.accumulate=3').run()


# -- losses and their weights ------------------------------------------------------------------------------------------

def one_step(folder: Path, media: Path, *overrides: str) -> tuple[CompressionSolver, dict]:
    """A new solver, and the metrics of a batch of valid."""
    with codec(folder, media, *overrides).solver() as solver:
        metrics: dict = {}
        solver.model.eval()
        with torch.no_grad():
            solver.run_step(0, solver.dataloaders['valid'].batch(0), metrics)
    return solver, metrics


def test_a_loss_of_weight_0_is_only_logged(tmp_path: Path, media: Path) -> None:
    options = [*NO_EXTRAS, 'optim.epochs=1', 'optim.updates_per_epoch=2']
    extra = ['+losses.l1={_target_: torch.nn.L1Loss}', '+weights.l1=0.']
    without, logged = (codec(tmp_path / name, media, *options, *more).run()
                       for name, more in (('a', []), ('b', extra)))
    assert logged.history[0]['train']['l1'] > 0 and 'l1' not in without.history[0]['train']
    assert logged.history[0]['train']['loss'] == without.history[0]['train']['loss']
    assert differing(without.model.state_dict(), logged.model.state_dict()) == []


def test_weights_of_losses_penalty_and_discriminators(tmp_path: Path, media: Path) -> None:
    solver, metrics = one_step(tmp_path, media, *ADVERSARIAL, 'weights.penalty=0.5', 'weights.l2=3.',
                               'weights.adv=0.25', '+weights.feat_msstftd=0.75')
    expected = (0.1 * metrics['sisnr'] + 3 * metrics['l2'] + metrics['msspec'] + 0.5 * metrics['penalty']
                + 0.25 * metrics['adv_msstftd'] + 0.75 * metrics['feat_msstftd'])
    torch.testing.assert_close(metrics['loss'], expected)
    assert (solver.weight('adv_msstftd'), solver.weight('feat_msstftd'), solver.weight('other')) == (0.25, 0.75, 1.)


def test_the_losses_of_another_yaml(tmp_path: Path, media: Path) -> None:
    solver, metrics = one_step(tmp_path, media, 'losses=waveform')
    assert to_plain(solver.cfg.weights)['msspec'] == 2 and solver.balancer is not None
    assert {'l1', 'msspec', 'sisnr'} <= metrics.keys() and 'l2' not in metrics


def test_what_cannot_be_read(tmp_path: Path, media: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One broken file of many is named and left out of training; all of them, or one of valid, stop it."""
    broken, mixed = tmp_path / 'broken' / 'nan.wav', tmp_path / 'mixed.jsonl'
    broken.parent.mkdir()
    soundfile.write(broken, torch.full((8000,), float('nan')).numpy(), RATE, subtype='FLOAT')
    files = [broken, media / 'train' / 'train0.wav', media / 'train' / 'train1.wav']
    mixed.write_text(''.join(json.dumps({'path': str(path), 'duration': 0.3, 'sample_rate': RATE}) + '\n'
                             for path in files))
    options = [*NO_EXTRAS, 'optim.epochs=1', 'dataset.sample_on_duration=false']
    solver = codec(tmp_path / 'mixed', media, *options, f'dset.train.media={mixed}').run()
    assert solver.dataloaders['train'].failures[str(broken)] > 1 and 'nan.wav: not finite' in caplog.text
    with pytest.raises(UserError, match='broken: none of the 1 files .* could be read; the last: .*nan.wav'):
        codec(tmp_path / 'train', media, *options, f'dset.train.media={broken.parent}').run()
    with pytest.raises(UserError, match='nan.wav: not finite'):
        codec(tmp_path / 'valid', media, *options, f'dset.valid.media={broken.parent}').run()


@pytest.mark.parametrize('overrides, message', [
    (['+weights.l7=1.'], r'weights\.l7 belongs to no loss; the losses are adv, feat, l2, msspec, penalty, sisnr'),
    (['+weights.adv_msstftd=1.'], r'weights\.adv_msstftd belongs to no loss'),
    (['+weights.mspec=1.'], r'weights\.mspec belongs to no loss; .* did you mean .msspec.\?'),
    (['sample_rate=8000', 'model.sample_rate=16000'], 'sample_rate and channels are 8000 and 1, .* 16000 and 1'),
    (['dset.train.media=null'], r'dset\.train\.media is not set'),
    ([*ADVERSARIAL, 'dataset.segment_duration=0.004'], r'128 samples of audio, got 64: .*segment_duration'),
])
def test_messages(tmp_path: Path, media: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        codec(tmp_path, media, *overrides).run()
