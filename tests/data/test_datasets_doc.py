"""The Python of docs/DATASETS.md runs, and prints what the page says."""

import re
from pathlib import Path

import torch

from audiocraft.data.audio import write_audio
from audiocraft.data.audio_manifest import find_audio, write_manifest

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'DATASETS.md'


def test_the_examples_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b'):
        write_audio(tmp_path / 'data' / 'music' / 'train' / f'{name}.wav', torch.rand(1, 48_000) * 0.1, 24_000)
    (tmp_path / 'data' / 'music' / 'train' / 'a.json').write_text('{"title": "First"}')
    write_manifest(tmp_path / 'data' / 'music' / 'train.jsonl', find_audio('data/music/train').metas)
    blocks = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    printed = []
    for block in blocks:
        exec(compile(block, str(PAGE), 'exec'), {})
        printed.append(capsys.readouterr().out)
    assert printed[0].splitlines()[0].endswith('a.wav 2.0 First') and printed[0].splitlines()[1].endswith('None')
    assert 'torch.Size([4, 1, 16000])' in printed[1] and printed[1].startswith('Plan(file=') and len(printed) == 2
