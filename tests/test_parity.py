"""The recorded numbers are met, and the runner notices when one is not."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import parity  # noqa: E402
from parity_checks.base import Fixture, Report  # noqa: E402
from parity_checks.kinds import UnknownKind, find_fixtures, kind_of  # noqa: E402
from parity_checks.perturb import copy_fixture, perturbations  # noqa: E402

GOLDEN = HERE / 'golden'
CHECKS = parity.load_checks()
FIXTURES = [item for item in find_fixtures([GOLDEN]) if isinstance(item, Fixture)]
CHECKED = [item for item in FIXTURES if item.name in CHECKS]
CHANGES = [pytest.param(item, role, id=f'{item.name}-{role}') for item in CHECKED for role in perturbations(item)]


@pytest.mark.parametrize('fixture', FIXTURES, ids=lambda item: item.name)
def test_recorded_numbers(fixture):
    result = parity.run(fixture, CHECKS)
    assert result.status == 'ok', '\n'.join(result.problems) or f'{fixture.name} has no check'


@pytest.mark.parametrize('fixture, role', CHANGES)
def test_one_changed_number_fails(fixture, role, tmp_path):
    folder = tmp_path / fixture.path.parent.relative_to(GOLDEN)
    files = copy_fixture(fixture, folder)
    perturbations(fixture)[role](files[role])
    (copy,) = find_fixtures([folder])
    assert copy.kind == fixture.kind
    assert parity.run(copy, CHECKS).status == 'FAIL'


def copy_renamed(fixture, folder, suffix):
    for role, path in copy_fixture(fixture, folder).items():
        stem = path.stem.removesuffix('_grads') if role == 'grads' else path.stem
        path.rename(path.with_name(path.name.replace(stem, stem + suffix, 1)))


def test_renamed_copies_elsewhere(tmp_path, capsys):
    for fixture in FIXTURES:
        if fixture.kind in ('network_v2', 'rope', 'net_small_16k'):
            copy_renamed(fixture, tmp_path / 'x' / fixture.path.parent.relative_to(GOLDEN), '_seed7')
    assert parity.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == '3 passed, 0 failed, 0 skipped'
    names = sorted(line.split()[0] for line in lines[:-1])
    assert names == ['mmaudio/net_small_16k', 'mmaudio/network_v2', 'mmaudio/rope']


def test_companion_belongs_to_its_file():
    (item,) = find_fixtures([GOLDEN / 'mmaudio' / 'network_grads.json'])
    assert item.kind == 'network' and item.path.name == 'network.safetensors'
    assert set(item.files) == {'safetensors', 'grads'}


def test_memmap_is_one_fixture():
    for path in ('memmap', 'memmap.json', 'memmap_contents.safetensors'):
        (item,) = find_fixtures([GOLDEN / 'mmaudio' / path])
        assert item.kind == 'memmap' and set(item.files) == {'folder', 'json', 'contents'}


def test_unknown_kind_fails(tmp_path, capsys):
    folder = tmp_path / 'mmaudio'
    folder.mkdir()
    save_file({'x': torch.zeros(1)}, folder / 'networks.safetensors')
    assert parity.main([str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == '0 passed, 1 failed, 0 skipped'


def test_known_kind_without_check_is_skipped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parity, 'load_checks', dict)
    assert parity.main([str(GOLDEN / 'mmaudio' / 'rope.safetensors')]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ['mmaudio/rope', '-', 'skipped'] and out[-1] == '0 passed, 0 failed, 1 skipped'


@pytest.mark.parametrize('name, kind', [
    ('mmaudio/network_v2_seed7.safetensors', ('mmaudio', 'network_v2')),
    ('mmaudio/train_steps_v2net.json', ('mmaudio', 'train_steps_v2net')),
    ('mmaudio/manifests/net_large_44k_v2.json', ('mmaudio', 'net_large_44k_v2')),
    ('mmaudio/manifests/network.json', None),
    ('audiocraft/seanet_causal_constant.safetensors', ('audiocraft', 'seanet')),
    ('audiocraft/mmaudio/metrics.safetensors', ('mmaudio', 'metrics')),
    ('vall_e/valle_tiny_a.safetensors', ('vall_e', 'valle_tiny')),
    ('elsewhere/network.safetensors', None),
])
def test_kind_of(tmp_path, name, kind):
    assert kind_of(tmp_path / name) == kind


def test_information_is_no_fixture(tmp_path):
    folder = tmp_path / 'mmaudio' / 'manifests'
    folder.mkdir(parents=True)
    for name in ('net_x_hypothetical', 'resolved_configs', 'unheard'):
        (folder / f'{name}.json').write_text('{}')
    (item,) = find_fixtures([folder])
    assert isinstance(item, UnknownKind) and item.path.stem == 'unheard'


def test_wrong_path():
    assert parity.main(['no/such/file.json']) == 2


class TestReport:
    @pytest.mark.parametrize('actual, expected, fine', [
        ([1., 2.], [1., 2.], True), ([1., 2.00001], [1., 2.], True), ([1., 2.001], [1., 2.], False),
        ([1., float('nan')], [1., float('nan')], True), ([1., 2.], [1., float('nan')], False),
        ([float('nan'), 2.], [1., 2.], False), ([1., float('-inf')], [1., float('inf')], False),
        ([1., 2., 3.], [1., 2.], False), ([0.], [0.], True)])
    def test_close(self, actual, expected, fine):
        report = Report()
        report.close('x', torch.tensor(actual), torch.tensor(expected))
        assert (not report.problems) == fine

    def test_bfloat16_has_its_own_tolerance(self):
        report = Report()
        report.close('x', torch.tensor([1.01]), torch.tensor([1.], dtype=torch.bfloat16))
        assert not report.problems

    def test_numbers(self):
        report = Report()
        report.numbers('x', {'a': [1., 2.], 'b': 3}, json.loads('{"a": [1.0, 2.5], "b": 4}'))
        assert [problem.split(':')[0] for problem in report.problems] == ['x.a', 'x.b']

    def test_nothing_compared_is_a_failure(self):
        assert Report().problems
