"""Whole files or none."""

import hashlib
import os

import pytest

from audiocraft.utils.files import sha256_of, write_atomic


def test_write_and_digest(tmp_path):
    path = tmp_path / 'folder' / 'x.txt'
    write_atomic(path, 'né')
    write_atomic(path, 'two')
    assert path.read_text() == 'two' and [p.name for p in path.parent.iterdir()] == ['x.txt']
    assert sha256_of(path) == hashlib.sha256(b'two').hexdigest()


def test_a_failure_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / 'x.txt'
    write_atomic(path, b'old')

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_atomic(path, b'new')
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1
