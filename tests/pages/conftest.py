import shutil

import pytest

from . import fake_xp


@pytest.fixture(scope='session')
def original(tmp_path_factory):
    """An XP folder that tests only read (the page is made in copies)."""
    return fake_xp.make(tmp_path_factory.mktemp('fake'))


@pytest.fixture
def xp(original, tmp_path):
    """A copy of the XP that a test may change; the truth stays where it was."""
    return shutil.copytree(original, tmp_path / original.name)
