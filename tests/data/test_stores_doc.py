"""The Python of docs/STORES.md runs, and makes what the page says."""
import re
from pathlib import Path

from audiocraft.data.check import check_path
from audiocraft.data.manifest import read_table
from audiocraft.data.store import Store

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'STORES.md'


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for _ in range(2):  # the second time it is complete already
        names: dict = {}
        for block, printed in zip(blocks, ('3 ', "[40, 90] [90, 4] {'total': 130, 'min': 40, 'max': 90}")):
            exec(compile(block, str(PAGE), 'exec'), names)
            assert capsys.readouterr().out.startswith(printed)
    assert check_path('data/tones/train', deep=True) == []
    assert check_path('data/tunes', deep=True) == []
    assert Store('data/tones/train').ids == ['tone-a', 'tone-b', 'hum']
    assert [row['id'] for row in read_table('data/tones/train.rejected.tsv')] == ['noise']
