import errno
import json
import os
import subprocess as sp
import sys
from pathlib import Path

import pytest

from audiocraft.cli import dispatch, forward, overview, verbs
from audiocraft.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_overview_names_commands_solvers_and_xps(monkeypatch, tmp_path, capsys):
    (tmp_path / 'xps' / '01234567').mkdir(parents=True)
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path))
    assert dispatch.main(['--help']) == 0
    out = capsys.readouterr().out
    assert all(f'  {verb} ' in out for verb in verbs.all_verbs())
    assert all(variant in out for variant in overview.solver_variants())
    assert f'{tmp_path}/xps, 1 so far' in out
    assert dispatch.main([]) == 0


def test_overview_survives_a_wrong_team(monkeypatch, capsys):
    monkeypatch.setenv('AUDIOCRAFT_TEAM', 'nobody')
    monkeypatch.delenv('AUDIOCRAFT_DORA_DIR')
    assert dispatch.main(['--help']) == 0
    assert 'unknown team' in capsys.readouterr().out


def test_solver_variants_have_a_line_each(tmp_path):
    (tmp_path / 'solver' / 'toy').mkdir(parents=True)
    (tmp_path / 'solver' / 'default.yaml').touch()
    (tmp_path / 'solver' / 'toy' / 'default.yaml').touch()
    (tmp_path / 'solver' / 'toy' / 'debug.yaml').write_text('# @package _global_\n#\n# A toy.\n# More.\nx: 1\n')
    assert overview.solver_variants([tmp_path]) == {'toy/debug': 'A toy.'}


def test_help_is_light():
    code = 'import sys; from audiocraft.cli.dispatch import main; main(["--help"]); print(sorted(sys.modules))'
    out = sp.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = out.splitlines()[-1]
    assert all(f"'{name}'" not in loaded for name in ('torch', 'numpy', 'hydra', 'dora', 'matplotlib'))


@pytest.mark.parametrize('word, hint', [('chek', 'check'), ('partition-clip', 'partition_clips'), ('rum', 'run')])
def test_misspelled_command(word, hint, capsys):
    assert dispatch.main([word]) == 1
    assert f'did you mean "{hint}"?' in capsys.readouterr().err


@pytest.mark.parametrize('verb', sorted(verbs.own_verbs()))
def test_help_of_each_command(verb, capsys):
    assert verbs.own_verbs()[verb]
    with pytest.raises(SystemExit) as caught:
        dispatch.main([verb.replace('_', '-'), '--help'])
    assert caught.value.code == 0
    assert f'python -m audiocraft {verb}' in capsys.readouterr().out


def test_user_errors_are_one_message(monkeypatch, capsys):
    def fail(verb, arguments):
        raise UserError('mend this')
    monkeypatch.setattr(dispatch, '_run', fail)
    assert dispatch.main(['check', 'x']) == 1
    assert capsys.readouterr().err == 'error: mend this\n'


def test_what_the_system_refuses_is_one_message(monkeypatch, capsys):
    def fail(verb, arguments):
        raise OSError(number, os.strerror(number), 'some/file')
    monkeypatch.setattr(dispatch, '_run', fail)
    number = errno.EROFS
    assert dispatch.main(['check', 'x']) == 1
    assert capsys.readouterr().err == f'error: some/file: {os.strerror(number)}\n'
    number = errno.ECHILD  # a fault of ours
    with pytest.raises(OSError):
        dispatch.main(['check', 'x'])


def test_interrupt(monkeypatch):
    def interrupted(verb, arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(dispatch, '_run', interrupted)
    assert dispatch.main(['check', 'x']) == 130


@pytest.mark.parametrize('verb, given, expected', [
    ('run', ['-d', 'a=1'], ['dora', 'run', '-d', 'a=1']),
    ('info', ['-f', 'SIG', '-v'], ['dora', 'info', '-f', 'SIG', '-v']),
    ('launch', ['-f', 'SIG'], ['dora', 'launch', '-f', 'SIG']),
    ('grid', ['x', '--dry_run'], ['dora', 'grid', 'x', '--dry_run']),
])
def test_dora_is_told_the_package(monkeypatch, verb, given, expected):
    import dora.__main__
    seen = []
    monkeypatch.setattr(sys, 'argv', ['x'])
    monkeypatch.setenv('DORA_PACKAGE', 'other')
    monkeypatch.setattr(dora.__main__, 'main', lambda: seen.append((sys.argv, os.environ['DORA_PACKAGE'])))
    assert forward.forward(verb, given) == 0
    assert seen == [(expected, 'audiocraft')]


def test_info_without_arguments_lists_xps(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path))
    assert dispatch.main(['info']) == 0
    assert 'No XPs' in capsys.readouterr().out
    for sig, history in [('aaaaaaaa', '[{}, {}]'), ('bbbbbbbb', '[{"tr')]:
        (tmp_path / 'xps' / sig).mkdir(parents=True)
        (tmp_path / 'xps' / sig / '.argv.json').write_text('["solver=x", "seed=3"]')
        (tmp_path / 'xps' / sig / 'history.json').write_text(history)
    assert dispatch.main(['info']) == 0
    out = capsys.readouterr().out
    assert 'aaaaaaaa' in out and '2 epochs  solver=x seed=3' in out and 'bbbbbbbb' in out


def test_check_command(tmp_path, capsys):
    table = tmp_path / 'captions.tsv'
    table.write_text('id\tcaption\na\tword\n')
    assert dispatch.main(['check', str(table)]) == 0
    assert capsys.readouterr().out == f'{table}: sound.\n'
    table.write_text('id\tcaption\na\n')
    before = table.read_bytes()
    assert dispatch.main(['check', str(table), str(tmp_path / 'nothing')]) == 1
    out = capsys.readouterr().out
    assert str(table) in out and 'nothing' in out
    assert table.read_bytes() == before


def test_weights_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    assert dispatch.main(['weights', 'list']) == 0
    assert 'synchformer' in capsys.readouterr().out
    assert dispatch.main(['weights', 'verify']) == 0
    (tmp_path / 'synchformer').mkdir()
    (tmp_path / 'synchformer' / 'synchformer_state_dict.pth').write_bytes(b'not it')
    assert dispatch.main(['weights', 'verify']) == 1
    assert 'md5' in capsys.readouterr().out
    assert dispatch.main(['weights', 'verify', 'nothing']) == 1


def test_partition_command(tmp_path):
    import numpy as np
    import soundfile
    for name in ('b', 'a'):
        soundfile.write(tmp_path / f'{name}.wav', np.zeros(16_000 * 9, np.float32), 16_000)
    out = tmp_path / 'clips.tsv'
    for word in ('--data_dir', '--data_path'):
        assert dispatch.main(['partition_clips', word, str(tmp_path), '--output_dir', str(out), '--start', '1']) == 0
        assert [line.split('\t')[0] for line in out.read_text().splitlines()] == ['id', 'b_0']


def test_make_example_command(tmp_path, monkeypatch, capsys):
    from audiocraft.examples import audio, video
    calls = []
    monkeypatch.setattr(video, 'make_video_examples', lambda out, **kwargs: calls.append((out, kwargs)))
    monkeypatch.setattr(audio, 'make_audio_examples', lambda out, **kwargs: calls.append((out, kwargs)))
    given = ['make_example', '--out', 'x', '--clips', '3', '--seed', '5']
    assert dispatch.main([*given, '--size', '96x72']) == 0
    assert calls[-1] == ('x', {'clips': 3, 'seed': 5, 'workers': 2, 'seconds': 4., 'size': (96, 72), 'fps': 25.})
    assert dispatch.main([*given, '--kind', 'audio']) == 0
    assert calls[-1] == ('x', {'clips': 3, 'seed': 5, 'workers': 2})
    assert dispatch.main([*given, '--kind', 'smell']) == 1
    assert 'smell' in capsys.readouterr().err


@pytest.mark.parametrize('script', sorted(path.name for path in (ROOT / 'scripts').glob('*.py')))
def test_scripts_work_from_a_checkout(script, tmp_path):
    result = sp.run([sys.executable, ROOT / 'scripts' / script, '--help'], capture_output=True, text=True, cwd=tmp_path,
                    env={'PATH': os.environ['PATH'], 'HOME': str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert 'usage:' in result.stdout


def test_sig_command_needs_no_run(tmp_path, capsys, monkeypatch):
    from audiocraft import train
    monkeypatch.setattr(train.main.dora, 'dir', tmp_path)
    assert dispatch.main(['sig', 'solver=mmaudio/debug']) == 0
    sig = capsys.readouterr().out.strip()
    assert len(sig) == 8 and not (tmp_path / 'xps').exists()
    assert dispatch.main(['sig', 'solver=mmaudio/debug', '--folder']) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'xps' / sig)
    assert dispatch.main(['sig', 'solver=mmaudio/debgu']) == 1
    assert json.dumps('mmaudio/debug') in capsys.readouterr().err
