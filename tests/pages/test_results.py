import json
import shutil

from audiocraft.pages.results import read_results


def test_the_newest_readable_update_is_taken(xp):
    shutil.copytree(xp / 'generate' / '4000', xp / 'generate' / '900')
    (xp / 'generate' / '10000').mkdir()  # begun, and killed before its first clip
    (xp / 'evaluate' / '900.json').write_text('{"onset_f1": 0.1}')
    results = read_results(xp)
    assert (results.update, len(results.clips), results.evaluated) == (4000, 3, 4000)
    assert results.metrics['onset_f1'] == 0.934


def test_metrics_may_be_nested_or_only_in_the_history(xp):
    (xp / 'evaluate' / '4000.json').write_text(json.dumps({'update': 4000, 'metrics': {'onset_f1': 0.2}}))
    assert read_results(xp).metrics == {'onset_f1': 0.2}
    shutil.rmtree(xp / 'evaluate')
    assert read_results(xp).metrics['onset_f1'] == 0.95 - 1.2 / 8


def test_overrides_of_hydra_when_dora_has_none(xp):
    (xp / '.argv.json').unlink()
    (xp / '.hydra').mkdir()
    (xp / '.hydra' / 'overrides.yaml').write_text('- solver=a/b\n- seed=2\n')
    assert read_results(xp).overrides == ['solver=a/b', 'seed=2']


def test_bare_nan_in_the_history_is_read(tmp_path):
    (tmp_path / 'history.json').write_text('[{"train": {"loss": NaN}}, null]')
    assert len(read_results(tmp_path).history) == 1
