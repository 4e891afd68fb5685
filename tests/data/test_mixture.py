import json

import pytest
import torch

from audiocraft.data.mixture import Mixture
from audiocraft.utils.errors import UserError

from . import stores


@pytest.fixture
def paths(tmp_path):
    stores.make(tmp_path / 'audio', keys=stores.AUDIO, rows=3, first=100)
    stores.make(tmp_path / 'video', rows=2)
    return tmp_path


def test_rows_are_those_of_the_stores_repeated(paths):
    mixture = Mixture([{'path': str(paths / 'video'), 'repeat': 2}, paths / 'audio'])
    assert [int(id) for id in mixture.ids] == [0, 1, 0, 1, 100, 101, 102] and len(mixture) == 7
    assert mixture.captions[4] == 'sound "100"' and mixture.rows[6]['duration'] == '4.0'
    assert [(store.name, row) for store, row in map(mixture.locate, (0, 3, 4, 6))] == [
        ('video', 0), ('video', 1), ('audio', 0), ('audio', 2)]
    assert set(mixture.keys) == set(stores.VIDEO)


def test_a_store_listed_twice_is_mapped_once(paths):
    mixture = Mixture([paths / 'video', paths / 'video'])
    assert mixture.stores[0] is mixture.stores[1] and mixture.nbytes == mixture.stores[0].nbytes


def test_limit_and_keys(paths):
    mixture = Mixture([paths / 'audio', paths / 'video'], keys=['mean', 'std'], limit=4)
    assert [int(id) for id in mixture.ids] == [100, 101, 102, 0] and list(mixture.keys) == ['mean', 'std']
    assert mixture.facts['rows'] == 4 and set(mixture.facts['keys']) == {'mean', 'std'}


def test_statistics_and_facts_are_of_the_store_with_pictures(paths):
    mixture = Mixture([paths / 'audio', paths / 'video'])
    video = mixture.stores[1]
    assert torch.equal(mixture.latent_stats()[0], video.latent_stats()[0])
    assert mixture.facts['latent_mean'] == video.facts['latent_mean'] and mixture.facts['sample_rate'] == 16000
    assert [source['name'] for source in mixture.facts['sources']] == ['audio', 'video']
    assert json.loads(json.dumps(mixture.facts)) == mixture.facts


def test_facts_tell_changed_data(paths):
    before = Mixture([paths / 'audio']).facts
    for path in list(paths.glob('audio*')):
        path.rename(paths / path.name.replace('audio', 'same'))
    stores.make(paths / 'audio', keys=stores.AUDIO, rows=3, first=101)
    after, same = Mixture([paths / 'audio']).facts, Mixture([paths / 'same']).facts
    assert before['sources'][0]['sha256'] == same['sources'][0]['sha256'] != after['sources'][0]['sha256']


def test_stores_that_do_not_fit(paths):
    stores.make(paths / 'other', keys={**stores.AUDIO, 'mean': ((5, 3), 'float32')})
    with pytest.raises(UserError, match=r'(?s)"mean".*\[4, 3\].*\[5, 3\]'):
        Mixture([paths / 'audio', paths / 'other'])
    facts = paths / 'audio.facts.json'
    facts.write_text(json.dumps({**json.loads(facts.read_text()), 'sample_rate': 44100}))
    with pytest.raises(UserError, match=r'(?s)sample_rate.*44100'):
        Mixture([paths / 'video', paths / 'audio'])


def test_extractors_must_be_the_same(paths):
    for name, weights in (('audio', 'aa'), ('video', 'bb')):
        facts = paths / f'{name}.facts.json'
        facts.write_text(json.dumps({**json.loads(facts.read_text()), 'extractors': {'text': {'sha256': weights}}}))
    with pytest.raises(UserError, match='extractors.text'):
        Mixture([paths / 'audio', paths / 'video'])


@pytest.mark.parametrize('source, said', [
    ({'path': 'video', 'repeat': 0}, 'repeat'), ({'path': 'video', 'repeat': 1.5}, 'repeat'), ({'repeat': 2}, 'path'),
    ({'path': 'video', 'times': 2}, 'times'), ('absent', 'absent')])
def test_wrong_sources(paths, monkeypatch, source, said):
    monkeypatch.chdir(paths)
    with pytest.raises(UserError, match=said):
        Mixture([source])


def test_wrong_keys_and_nothing(paths):
    with pytest.raises(UserError, match='codes'):
        Mixture([paths / 'audio'], keys=['codes'])
    with pytest.raises(UserError, match='empty'):
        Mixture([])


def test_optional_stores_may_be_absent(paths, caplog):
    absent = {'path': str(paths / 'clotho'), 'optional': True}
    mixture = Mixture([paths / 'video', absent, {'path': str(paths / 'audio'), 'optional': True}])
    assert [store.name for store in mixture.stores] == ['video', 'audio']
    assert f'no store {paths / "clotho"}' in caplog.text
    with pytest.raises(UserError, match='clotho'):
        Mixture([paths / 'video', {'path': str(paths / 'clotho')}])
    (paths / 'clotho.partial').mkdir()
    Mixture([paths / 'video', absent])
    assert f'no store {paths / "clotho"} (its writing has not finished)' in caplog.text
    (paths / 'clotho').mkdir()
    with pytest.raises(UserError, match='clotho'):
        Mixture([paths / 'video', absent])  # damaged is not absent
    with pytest.raises(UserError, match='A store is given as a path'):
        Mixture([paths / 'video', {'optional': True}])
