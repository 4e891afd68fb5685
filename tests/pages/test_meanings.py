from audiocraft.pages.meanings import follows, measures

from .fake_xp import METRICS


def test_controls_stand_beside_their_measure():
    found = {measure.name: measure for measure in measures(METRICS)}
    assert list(found) == ['flow_loss', 'onset_f1', 'kind_accuracy', 'fd_embedded', 'kl_embedded']
    assert found['onset_f1'].controls == {'ceiling': 0.971, 'wrong_video': 0.118, 'frozen': 0.092, 'shifted': 0.071,
                                          'swapped_caption': 0.93}
    assert found['kind_accuracy'].controls['swapped_caption/of_caption'] == 0.03


def test_odd_names_are_shown_too():
    odd = {'frozen/alone': 1., 'a': 5., 'a_b': 2., 'a_b_c': 3., 'x/a': 4., 'unheard_of': 'text'}
    shown = [value for measure in measures(odd) for value in (measure.value, *measure.controls.values())]
    assert sorted(map(str, shown)) == sorted(map(str, odd.values()))


def test_a_reason_belongs_to_its_measure_and_meanings_go_by_beginnings():
    found = {measure.name: measure for measure in measures(METRICS)}
    assert found['kl_embedded'].reason == 'no generated clip has a true one' and not found['kl_embedded'].controls
    assert found['fd_embedded'].controls == {'n': 32.} and found['fd_embedded'].meaning.startswith('Fréchet')


def test_scores_of_reconstructions():
    metrics = {'l1': 0.1, 'mel': 0.3, 'si_snr': 9., 'si_snr_median': 8., 'si_snr_worst': 1., 'mel_distance': 0.2,
               'stft_distance': 2., 'codebook_use': 0.9, 'codebook_use_0': 1., 'codebook_use_1': 0.8,
               'codebook_perplexity': 200., 'bitrate': 1.6, 'visqol': None, 'visqol_reason': 'not installed',
               'untrained/si_snr': -20., 'untrained/si_snr_median': -21., 'untrained/mel_distance': 2.}
    found = {measure.name: measure for measure in measures(metrics)}
    assert list(found) == ['l1', 'mel', 'si_snr', 'mel_distance', 'stft_distance', 'codebook_use',
                           'codebook_perplexity', 'bitrate', 'visqol']
    assert found['si_snr'].controls == {'untrained': -20., 'median': 8., 'worst': 1.}
    assert found['codebook_use'].controls == {'0': 1., '1': 0.8} and not found['mel'].controls
    assert found['mel_distance'].controls == {'untrained': 2.} and found['visqol'].reason == 'not installed'
    assert all(measure.meaning for name, measure in found.items() if name != 'mel')


def test_what_the_sound_follows():
    key = 'swapped_caption/kind_accuracy', 'swapped_caption/of_caption/kind_accuracy'
    assert follows(METRICS) == [('swapped_caption', 'the picture', 0.94, 0.03)]
    assert follows(dict(zip(key, (0.1, 0.9))))[0][1] == 'the caption'
    assert follows(dict(zip(key, (0.5, 0.48))))[0][1] == 'neither more than the other'
    assert follows(dict(zip(key, (0.5, None)))) == []
