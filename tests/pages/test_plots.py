import math

import pytest
import torch

from audiocraft.pages import plots

from .fake_xp import RATE, sound

PNG = b'\x89PNG'


def test_the_loudest_band_is_where_the_tone_is():
    t = torch.arange(RATE) / RATE
    low, high = (plots.log_mel_db(torch.sin(2 * math.pi * hz * t), RATE).mean(1).argmax() for hz in (200, 4000))
    assert low < 15 and high > 50


@pytest.mark.parametrize('wav', [torch.zeros(1, RATE), torch.zeros(2, 10), torch.full((1, RATE), math.nan)])
def test_silence_very_short_and_broken_sounds(wav):
    level = plots.log_mel_db(wav, RATE)
    assert level.isfinite().all() and level.max() == -plots.RANGE_DB


@pytest.mark.parametrize('axes', [False, True])
def test_spectrogram_png(tmp_path, axes):
    wav = torch.from_numpy(sound([0.5], 400, 0))[None]
    path = plots.spectrogram_png(wav, RATE, tmp_path / 'a.png', events=[{'time': 0.5}, {'time': 99.}],
                                 title='a <b> 中', axes=axes)
    assert path.read_bytes()[:4] == PNG and [p.name for p in tmp_path.iterdir()] == ['a.png']


def test_an_event_shows_in_the_picture(tmp_path):
    wav = torch.zeros(1, RATE)
    empty = plots.spectrogram_png(wav, RATE, tmp_path / 'a.png').read_bytes()
    assert plots.spectrogram_png(wav, RATE, tmp_path / 'b.png', events=[{'time': 0.5}]).read_bytes() != empty


def test_curves_are_sorted_into_panels():
    history = [{'train': {'loss': 3., 'lr': 1.}, 'valid': {'loss': math.nan}},
               {'train': {'loss': 2.}, 'valid': {'loss': 2.5, 'l1': 0.1},
                'evaluate': {'l1': 0.1, 'mel_distance': 0.3,
                             'onset_f1': 0.5, 'frozen/onset_f1': 0.1, 'onset_f1_wrong_video': 0.1, 'fad': 7.,
                             'fad_n': 9., 'kl': None, 'flow_loss': 1.}}]
    assert plots.curves(history) == {
        'loss': {'train': [(1, 3.), (2, 2.)], 'valid': [(2, 2.5)], 'evaluate flow_loss': [(2, 1.)]},
        'scores': {'onset_f1': [(2, 0.5)]}, 'distances': {'mel_distance': [(2, 0.3)], 'fad': [(2, 7.)]}}


def test_curves_png(tmp_path):
    history = [{'train': {'loss': 10. ** -i}, 'evaluate': {'onset_f1': 0.1 * i}} for i in range(5)]
    assert plots.curves_png(history, tmp_path / 'a.png').read_bytes()[:4] == PNG
    assert plots.curves_png([], tmp_path / 'b.png') is None
    assert plots.curves_png(history, tmp_path / 'b.png', panels=['distances']) is None
    assert not (tmp_path / 'b.png').exists()


def test_without_matplotlib_it_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plots, 'matplotlib', None)
    monkeypatch.setattr(plots, '_told', set())
    for _ in range(2):
        assert plots.spectrogram_png(torch.zeros(1, 100), RATE, tmp_path / 'a.png') is None
    assert len(caplog.records) == 1 and 'audiocraft[plots]' in caplog.text
