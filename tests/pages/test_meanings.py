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


def test_what_the_sound_follows():
    key = 'swapped_caption/kind_accuracy', 'swapped_caption/of_caption/kind_accuracy'
    assert follows(METRICS) == [('swapped_caption', 'the picture', 0.94, 0.03)]
    assert follows(dict(zip(key, (0.1, 0.9))))[0][1] == 'the caption'
    assert follows(dict(zip(key, (0.5, 0.48))))[0][1] == 'neither more than the other'
    assert follows(dict(zip(key, (0.5, None)))) == []
