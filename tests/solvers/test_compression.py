"""The compression solver: it trains, resumes bit for bit, evaluates, writes samples, and is loaded without itself."""

import json
from pathlib import Path

import pytest
import torch

from audiocraft.data.audio import write_audio
from audiocraft.models.loaders import load_compression_model
from audiocraft.solvers.compression import CompressionSolver
from audiocraft.utils.errors import UserError
from audiocraft.utils.signals import Stopped

from .conftest import Runner

TINY = ['solver=compression/mel_vae_debug', 'model.width=16', 'model.depth=1', 'model.latent_dim=4',
        'model.griffin_lim_iter=2', 'dataset.batch_size=4', 'dataset.segment_duration=0.256',
        'dataset.eval_duration=0.5', 'schedule.warmup=2', 'optim.epochs=2']


@pytest.fixture(scope='module')
def media(tmp_path_factory) -> Path:
    """Folders train, valid and test of decaying tones, with the times of their beginnings."""
    root = tmp_path_factory.mktemp('data')
    time = torch.arange(8000) / 16_000
    for stage, count in (('train', 6), ('valid', 2), ('test', 2)):
        events = {}
        for i in range(count):
            tone = 0.5 * torch.sin(2 * torch.pi * (300 + 90 * i) * time) * torch.exp(-20 * (time - 0.1).clamp(min=0))
            write_audio(root / stage / f'{stage}{i}.wav', (tone * (time >= 0.1))[None], 16_000)
            events[f'{stage}{i}'] = [{'time': 0.1, 'kind': 'tone'}]
        (root / stage / 'events.json').write_text(json.dumps(events))
    return root


def runner(folder: Path, media: Path, *overrides: str) -> Runner:
    return Runner(folder, CompressionSolver, *TINY, f'dset.root={media}', *overrides)


def weights(solver: CompressionSolver) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in solver.model.state_dict().items()}


def test_train_evaluate_generate_and_load(tmp_path: Path, media: Path) -> None:
    run = runner(tmp_path, media, 'optim.updates_per_epoch=25')
    solver = run.run()
    first, last = (epoch['train']['loss'] for epoch in solver.history)
    assert last < 0.9 * first
    results = solver.history[-1]['evaluate']
    assert results['mel_distance'] > 0 and results['log_spectral_distance'] > 0 and 'onset_f1' in results
    assert 'evaluate' not in solver.history[0], 'only after the last epoch'
    assert solver.model.data_std.min() > 1e-3 and solver.model.data_mean.abs().max() > 0.1
    samples = run.xp_folder / 'generate' / '50'
    written = {path.name for path in samples.iterdir()}
    assert written == {f'test{i}.{kind}' for i in range(2) for kind in ('wav', 'json', 'png')}
    record = json.loads((samples / 'test0.json').read_text())
    assert (samples / record['reference']).resolve() == media / 'test' / 'test0.wav'
    assert (run.xp_folder / 'samples' / 'index.html').exists()

    loaded = load_compression_model(run.xp_folder)
    best = {key: value for key, value in solver.best.states['model'].items()}
    assert all(torch.equal(value, best[key]) for key, value in loaded.state_dict().items())


def test_resumed_equals_uninterrupted(tmp_path: Path, media: Path) -> None:
    options = ['evaluate.every=0', 'generate.every=0']
    whole = runner(tmp_path / 'whole', media, *options).run()

    part = runner(tmp_path / 'part', media, *options)
    with part.solver() as solver:
        step = solver.run_step

        def stopping(idx, batch, metrics):
            if solver.update == 7:
                solver.stop.requested = 15
            return step(idx, batch, metrics)

        solver.run_step = stopping
        with pytest.raises((Stopped, SystemExit)):
            solver.run()
    resumed = part.run()
    assert resumed.update == whole.update == 10
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())
    without_times = [[{k: v for k, v in stage.items() if k != 'duration'} for stage in epoch.values()]
                     for history in (whole.history, resumed.history) for epoch in history]
    assert without_times[:2] == without_times[2:]


def test_other_data_is_noticed(tmp_path: Path, media: Path) -> None:
    options = ['evaluate.every=0', 'generate.every=0', 'optim.epochs=1']
    run = runner(tmp_path, media, *options)
    run.run()
    extra = media / 'valid' / 'extra.wav'
    write_audio(extra, torch.rand(1, 8000) * 0.1, 16_000)
    try:
        with pytest.raises(UserError, match='data of this XP has changed(.|\n)*files: 2 -> 3'):
            run.run()
    finally:
        extra.unlink()


def test_the_loss_is_the_weighted_sum(tmp_path: Path, media: Path) -> None:
    with runner(tmp_path, media, 'weights.penalty=0.5', '++losses.l2={_target_: torch.nn.MSELoss}',
                '++weights.l2=2.').solver() as solver:
        metrics: dict = {}
        batch = solver.dataloaders['valid'].batch(0)
        solver.run_step(0, batch, metrics)
    expected = metrics['l1'] + 2 * metrics['l2'] + 0.5 * metrics['penalty']
    torch.testing.assert_close(metrics['loss'], expected)


@pytest.mark.parametrize('overrides, message', [
    (['dset.train.media=null'], 'dset.train.media is not set'),
    (['+weights.l7=1.'], 'weights.l7 belongs to no loss'),
    (['channels=2'], 'channels'),
    (['dset.root=/nowhere'], '/nowhere/train'),
])
def test_messages(tmp_path: Path, media: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message), runner(tmp_path, media, *overrides).solver():
        pass
