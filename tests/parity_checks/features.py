"""The table of clips that long audio files are cut into."""

import tempfile
from pathlib import Path

import numpy as np
import soundfile

from audiocraft.features.partition import partition_clips

from .base import Fixture, Report


def check_partition_clips(fixture: Fixture, report: Report) -> None:
    """The table of a folder of silent files of the recorded lengths: whole, and put together from parts."""
    recorded = fixture.json
    options = {'clip_seconds': recorded['min_length_sec'], 'max_clips': recorded['max_segments_per_clip']}
    with tempfile.TemporaryDirectory() as name:
        folder, table = Path(name) / 'audio', Path(name) / 'clips.tsv'
        folder.mkdir()
        for stem, facts in recorded['files'].items():
            silence = np.zeros(facts['num_samples'], dtype=np.int16)
            soundfile.write(str(folder / f'{stem}.wav'), silence, facts['sample_rate'])
        partition_clips(folder, table, **options)
        whole = table.read_text()
        report.equal('clips_tsv', whole.splitlines(), recorded['clips_tsv'].splitlines())
        lines = whole.splitlines()[:1]
        middle = len(recorded['files']) // 2
        for start, end in ((0, middle), (middle, -1)):
            partition_clips(folder, table, start, end, **options)
            lines += table.read_text().splitlines()[1:]
        report.equal('parts', lines, whole.splitlines())


CHECKS = {'mmaudio/partition_clips': check_partition_clips}
