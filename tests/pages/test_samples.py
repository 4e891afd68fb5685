import html
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from audiocraft.cli import dispatch
from audiocraft.environment import AudioCraftEnvironment
from audiocraft.pages import cards, plots, samples


class Page(HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        self.links += [value for key, value in attributes if key in ('src', 'href') and value != 'data:,']

    def handle_data(self, data):
        self.text += data

    @property
    def files(self) -> list[str]:
        return [link.partition('#')[0] for link in self.links if not link.startswith('#')]


def test_every_clip_is_there_with_its_truth_and_spectrograms(xp):
    page = Page(samples.write_page(xp))
    assert page.names.count('article') == 3
    assert page.names.count('video') == 5 and page.names.count('audio') == 1  # 2 + 3 truths, 1 sound alone
    assert page.names.count('img') == 6 + 3  # spectrograms; losses, scores, distances
    for words in ('a red square strikes wood', 'Clip0003', '1234', 'checkpoints/4000 (best)', 'solver=mmaudio/debug',
                  '1a2b3c4d', 'seed: 1', 'sound follows: the picture', '0.934', 'no generated clip has a true one'):
        assert words in page.text, words


def test_the_folder_can_be_moved(xp, tmp_path):
    moved = shutil.move(samples.write_page(xp).parent, tmp_path / 'elsewhere')
    page = Page(Path(moved) / 'index.html')
    assert page.files and all((Path(moved) / link).is_file() for link in page.files)
    assert {os.path.normpath(link) for link in page.files} == {
        p.relative_to(moved).as_posix() for p in Path(moved).rglob('*') if p.is_file()} - {'index.html'}


def test_captions_and_ids_cannot_add_markup(xp):
    path = xp / 'generate' / '4000' / '1.json'
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'id': evil, 'caption': evil, evil: evil,
                                'scores': {evil: 1.}, 'conditions': [evil]}))
    (xp / 'evaluate' / '4000.json').write_text(json.dumps({evil: 0.5, f'x/{evil}': evil}))
    page = samples.write_page(xp, title=evil, signature=evil, delta=[f'a={evil}'], best_metric=evil)
    text = page.read_text()
    assert text.count('<script') == 1 and '<img src=x' not in text and '="">' not in text


def test_nothing_is_fetched_from_elsewhere(xp):
    text = html.unescape(samples.write_page(xp).read_text())
    assert not re.search('https?:|//[a-z]', text) and "default-src 'none'" in text and 'unsafe' not in text


def test_secrets_of_the_configuration_are_hidden(xp):
    text = samples.write_page(xp).read_text()
    assert 'hush' not in text and 'api_key: (hidden)' in text


def test_the_second_time_makes_nothing_again_and_removes_what_is_old(xp, monkeypatch):
    folder = samples.write_page(xp).parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*.*') if path.name != 'index.html'}
    (folder / 'old.wav').touch()
    monkeypatch.setattr(cards, 'read_audio', None)  # would be called to make a picture
    samples.write_page(xp)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob('*.*') if path.name != 'index.html'}


def test_a_failure_keeps_the_page_before(xp, monkeypatch):
    page = samples.write_page(xp)
    before = page.read_text()
    monkeypatch.setattr(samples.sections, 'reproduce', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        samples.write_page(xp, title='other')
    assert page.read_text() == before and all((page.parent / link).is_file() for link in Page(page).files)


def test_an_empty_folder_tells_how_to_make_samples(tmp_path):
    text = Page(samples.write_page(tmp_path, signature='abcd1234')).text
    assert 'dora run -f abcd1234 execute_only=generate execute_inplace=true' in text


def test_without_matplotlib_the_page_has_the_clips_and_names_the_extra(xp, monkeypatch):
    monkeypatch.setattr(plots, 'matplotlib', None)
    page = Page(samples.write_page(xp))
    assert page.names.count('img') == 0 and page.names.count('video') == 5
    assert "pip install 'audiocraft[plots]'" in page.text


@pytest.mark.parametrize('damage', ['history.json', '.argv.json', 'evaluate/4000.json', 'generate/4000/0.json'])
def test_a_damaged_file_is_named_and_the_rest_is_shown(xp, damage):
    (xp / damage).write_text('{"tru')
    page = Page(samples.write_page(xp))
    assert f'{Path(damage).name} could not be read' in page.text and 'Clip0003' in page.text


def test_a_sound_that_cannot_be_read_is_named(xp):
    (xp / 'generate' / '4000' / '2.wav').write_bytes(b'RIFF')
    page = Page(samples.write_page(xp))
    assert '2.wav: its sound could not be read' in page.text and page.names.count('article') == 3


def test_truth_that_is_no_media_or_gone_is_not_copied(xp, tmp_path):
    (tmp_path / 'notes.txt').write_text('private')
    for i, reference in enumerate([str(tmp_path / 'notes.txt'), 'gone.mp4']):
        path = xp / 'generate' / '4000' / f'{i}.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), 'reference': reference}))
    page = samples.write_page(xp)
    assert not list(page.parent.rglob('*.txt')) and 'gone.mp4 is not there any more' in page.read_text()


def test_truth_in_a_container_that_browsers_do_not_play_is_shown_by_its_sound(xp, original, tmp_path):
    import av
    truth = json.loads((xp / 'generate' / '4000' / '0.json').read_text())['reference']
    with av.open(truth) as source, av.open(str(tmp_path / 'truth.mkv'), 'w') as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    path = xp / 'generate' / '4000' / '0.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'reference': str(tmp_path / 'truth.mkv')}))
    page = samples.write_page(xp)
    assert [p.suffix for p in (page.parent / 'truth').glob('Clip0001-*')].count('.wav') == 1
    assert not list(page.parent.rglob('*.mkv'))


def test_events_beside_the_truth_count_from_the_start_of_the_clip(xp, tmp_path):
    path = xp / 'generate' / '4000' / '0.json'
    content = json.loads(path.read_text())
    truth = shutil.copy(content['reference'], tmp_path / 'long.mp4')
    events = {'events': [{'time': 0.2}, {'time': 1.25, 'kind': 'wood'}]}
    truth.with_suffix('.events.json').write_text(json.dumps(events))
    del content['events']
    path.write_text(json.dumps({**content, 'reference': str(truth), 'start': 0.5, 'duration': 1.5}))
    article = samples.write_page(xp).read_text().split('<article')[1]
    assert article.count('class="event"') == 2 and article.count('x1="50.00%" x2="50.00%" y1="0" y2="100%"') == 2
    assert '.mp4#t=0.5,2"' in article


def test_many_clips_are_folded_then_counted(xp, monkeypatch):
    monkeypatch.setattr(samples, 'MAX_CLIPS', 2)
    monkeypatch.setattr(samples.sections, 'OPEN_CARDS', 1)
    text = Page(samples.write_page(xp)).text
    assert '1 more clips' in text and '1 more in generate/4000/.' in text


def test_delta_as_pairs(xp):
    assert 'dora run solver=x/y seed=3' in Page(samples.write_page(xp, delta=[('solver', 'x/y'), ('seed', 3)])).text


def test_the_command_takes_a_path_or_a_signature(xp, monkeypatch, capsys):
    assert dispatch.main(['page', str(xp)]) == 0
    assert capsys.readouterr().out.strip() == str(xp / 'samples' / 'index.html')
    monkeypatch.setattr(samples, 'folder_of_signature', lambda sig: xp.parent / sig)
    assert samples.find_folder('1a2b3c4d') == xp and samples.find_folder('//sig/1a2b3c4d') == xp


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path / 'dora'))
    AudioCraftEnvironment.reset()
    for target, words in (('deadbeef', 'neither a folder nor the signature'), (tmp_path, 'does not look like')):
        assert dispatch.main(['page', str(target)]) == 1
        assert words in capsys.readouterr().err


def test_a_thousand_notes_are_a_few_lines(xp):
    for i in range(20):
        (xp / 'generate' / '4000' / f'bad{i}.json').write_text('{')
    page = Page(samples.write_page(xp))
    assert page.text.count('could not be read') == 6 and '14 more like this' in page.text
