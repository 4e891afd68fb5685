import pytest
import torch

from audiocraft.utils.devices import select_device
from audiocraft.utils.errors import UserError


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert select_device() == select_device('cpu') == select_device(torch.device('cpu')) == torch.device('cpu')
    for name in ('cuda', 'cuda:1'):
        with pytest.raises(UserError, match=f'device={name}, but there is no CUDA device'):
            select_device(name)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    for name in ('LOCAL_RANK', 'SLURM_LOCALID', 'RANK'):
        monkeypatch.delenv(name, raising=False)
    assert select_device() == torch.device('cuda')
    monkeypatch.setenv('LOCAL_RANK', '6')
    assert [str(select_device(name)) for name in ('auto', 'cuda', 'cuda:1', 'cpu')] == [
        'cuda:2', 'cuda:2', 'cuda:1', 'cpu']


def test_no_such_device() -> None:
    with pytest.raises(UserError, match='device=gpu is unknown'):
        select_device('gpu')
