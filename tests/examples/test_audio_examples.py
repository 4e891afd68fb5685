import hashlib
from pathlib import Path

import pytest

from audiocraft.data.audio import audio_info, read_audio
from audiocraft.data.manifest import read_table
from audiocraft.examples.audio import make_audio_examples
from audiocraft.examples.scene import kind_of
from audiocraft.utils.errors import UserError


def test_files_captions_and_lengths(tmp_path: Path) -> None:
    folder = make_audio_examples(tmp_path / 'a', 6, 1, workers=1)
    rows = read_table(folder / 'captions.tsv')
    files = sorted(path for path in folder.iterdir() if path.suffix in ('.wav', '.flac'))
    assert [row['id'] for row in rows] == [path.stem for path in files]
    assert {path.suffix for path in files} == {'.wav', '.flac'}
    lengths = [audio_info(path).duration for path in files]
    assert min(lengths) >= 6 and max(lengths) <= 20 and max(lengths) > 8.1 and len(set(lengths)) == 6
    for index, (row, path) in enumerate(zip(rows, files)):
        assert kind_of(1, index) in row['caption']
        wav, rate = read_audio(path)
        assert rate == 16_000 and wav.shape[0] == 1 and 0.05 < wav.abs().max() < 1


def test_same_call_same_files(tmp_path: Path) -> None:
    def digests(name: str, workers: int, clips: int = 9) -> dict[str, str]:
        folder = make_audio_examples(tmp_path / name, clips, 0, seconds=(0.5, 1.), workers=workers)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    digests('a', 1, clips=2)
    assert digests('a', 1) == digests('b', 2)
    (tmp_path / 'a/clip_00003.flac').unlink()
    assert digests('a', 1) == digests('b', 1)


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    for change, words in (({'seconds': (3., 2.)}, 'shortest'), ({'sample_rate': 10}, 'sample_rate')):
        with pytest.raises(UserError, match=words):
            make_audio_examples(tmp_path / 'a', 1, 0, **change)  # type: ignore[arg-type]
    make_audio_examples(tmp_path / 'b', 1, 0, seconds=(0.5, 1.))
    with pytest.raises(UserError, match='seconds'):
        make_audio_examples(tmp_path / 'b', 1, 0, seconds=(0.5, 2.))
