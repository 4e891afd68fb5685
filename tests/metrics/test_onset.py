import dataclasses

from audiocraft.metrics.onset import OnsetF1

from .sounds import clips, struck


def results(generated, reference, **kwargs):
    metric = OnsetF1(**kwargs)
    for a, b in zip(generated, reference):
        metric.update([a], [b])
    return metric.compute()


def test_the_truth_scores_one_and_the_wrong_videos_do_not():
    true = clips(16)
    found = results(true, true)
    assert found['onset_f1'] >= 0.98 and found['onset_precision'] >= 0.98 and found['onset_recall'] >= 0.98
    assert found['onset_f1_wrong_video'] < 0.3
    shuffled = results(true, [*true[3:], *true[:3]])
    assert shuffled['onset_f1'] < 0.3


def test_late_sounds_fail():
    true = clips(6)
    late = [dataclasses.replace(clip, audio=struck([event['time'] + 0.08 for event in clip.events])) for clip in true]
    assert results(late, true)['onset_f1'] < 0.2
    assert results(late, true, tolerance=0.1)['onset_f1'] > 0.9


def test_events_after_the_end_do_not_count():
    true = clips(2)
    short = [dataclasses.replace(clip, audio=clip.audio[:, :16_000]) for clip in true]
    longer = [dataclasses.replace(clip, events=[*clip.events, {'time': 2.9, 'kind': 'low'}]) for clip in true]
    assert results(short, true) == results(short, longer)


def test_reasons_instead_of_numbers():
    true = clips(1)
    found = results(true, [None])
    assert found == {'onset_f1': None, 'onset_f1_reason': 'no generated clip has a true one with events'}
    without = dataclasses.replace(true[0], events=[])
    assert results(true, [without])['onset_f1'] is None
    assert 'onset_f1_wrong_video' not in results(true, true)


def test_reset_forgets():
    metric, true = OnsetF1(), clips(1)
    metric.update(true, true)
    metric.reset()
    assert metric.compute()['onset_f1'] is None
