"""Deltas without a copy of the config, against Dora's own."""

import pytest
from dora.hydra import HydraMain
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from audiocraft import train
from audiocraft.launch import deltas
from audiocraft.launch.deltas import Composed

BASE = """
seed: 1
name: null
optim: {lr: 1.0, betas: [0.5, 0.9], adam: {eps: 1.0e-8, amsgrad: false}, total: "${optim.epochs}0", epochs: 3}
data: {root: a, train: "${data.root}/train", lists: ["${data.root}/1", b], again: "${data.train}"}
slurm: {gpus: 1}
same: "${optim.adam}"
twice: "${same.eps}"
odd: "${oc.env:NOT_SET_ANYWHERE,default}"
none: {}
"""


@pytest.fixture
def composed():
    base = OmegaConf.create(BASE)
    OmegaConf.set_struct(base, True)
    return Composed(base)


@pytest.mark.parametrize('argv', [
    [], ['seed=2'], ['seed=1'], ['optim.lr=2.', 'seed=3'], ['optim.lr=null'], ['optim.betas=[1,2]'], ['name=x'],
    ['data.root=b'], ['data.root=b', 'data.train=c'], ['data.train=c'], ['data.lists=[x]'], ['optim.epochs=5'],
    ['optim.adam.eps=2.'], ['optim.adam={eps: 3.}'], ['optim.adam={eps: 3.}', 'optim.adam.amsgrad=true'],
    ['+none.new=3'], ['+fresh={a: 1}', 'seed=5'], ['data.lists.0=z'], ['seed=${optim.epochs}'],
    ['seed=${optim.epochs}', 'optim.epochs=8'], ['name={a: 1}'], ['odd=x'], ['++optim.lr=4.'], ['same=null', 'name=y'],
])
def test_as_by_comparing_everything(composed, argv):
    try:
        expected = deltas._changes(composed.base, composed.with_overrides(argv), ())
    except AssertionError:
        with pytest.raises(AssertionError):
            composed.delta(argv)
    else:
        assert composed.delta(argv) == expected
    # Nothing stays behind, also after an error.
    assert composed._scratch == composed.base == OmegaConf.create(BASE)
    assert composed.delta(['seed=7']) == [('seed', 7)]


def test_errors_leave_nothing_behind(composed):
    for argv in (['optim.nothing=1'], ['seed.x=1'], ['seed=3', 'optim.lr=${nowhere}'], ['optim.lr=[1,']):
        with pytest.raises((HydraException, OmegaConfBaseException)):
            composed.delta(argv)
        assert composed._scratch == composed.base


def test_only_what_can_change_is_looked_at(composed):
    assert composed.delta(['data.root=b']) == [('data.again', 'b/train'), ('data.lists', ['${data.root}/1', 'b']),
                                               ('data.root', 'b'), ('data.train', 'b/train')]
    reached = composed._reached([('optim', 'adam', 'eps')])
    assert {'.'.join(path) for path in reached} == {'same', 'twice', 'odd'}
    assert [path for path in composed._reached([('seed',)])] == [('odd',)]


REAL = [
    ['solver=mmaudio/debug'], ['solver=mmaudio/debug', 'optim.lr=0.5', 'seed=3'],
    ['solver=mmaudio/debug', 'dset.root=x'],
    ['solver=compression/debug', 'model.quantizer.n_q=2', 'adversarial=msstftd_tiny'],
    ['solver=mmaudio/debug', 'logging.level=DEBUG', 'slurm.gpus=3'], ['solver=mmaudio/debug', 'evaluate.metrics={}'],
]


def test_signatures_are_those_of_dora():
    def main(cfg):
        """Dora writes into the function it is given."""
    main.__module__ = 'audiocraft.train'
    stock = HydraMain(main, config_name='config', config_path=str(train.main.full_config_path), version_base='1.3')
    stock.dora.dir = train.main.dora.dir
    for argv in REAL:
        theirs, ours = stock.get_xp(argv), train.main.get_xp(argv)
        assert (ours.sig, ours.delta, ours.folder) == (theirs.sig, theirs.delta, theirs.folder)
        assert deltas.part(ours, 'slurm') == deltas.part(theirs, 'slurm')
        assert ours.cfg == theirs.cfg and ours.cfg is ours.cfg


def test_the_config_is_made_when_it_is_asked_for(monkeypatch):
    calls = []
    stock = Composed.with_overrides
    monkeypatch.setattr(Composed, 'with_overrides', lambda self, argv: calls.append(argv) or stock(self, argv))
    xp = train.main.get_xp(['solver=mmaudio/debug', 'seed=3'])
    assert deltas.part(xp, 'slurm').gpus == 1 and deltas.part(xp, 'solver') and calls == []
    assert deltas.part(xp, 'seed') == 3 and xp.cfg.seed == 3 and len(calls) == 1
    xp.cfg = OmegaConf.create({'seed': 4})
    assert xp.cfg.seed == deltas.part(xp, 'seed') == 4 and len(calls) == 1


def test_overrides_of_an_xp_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(train.main.dora, 'dir', tmp_path)
    xp = train.main.init_xp(train.main.get_xp(['solver=mmaudio/debug', 'seed=3']))
    before = xp._argv_cache.stat()
    train.main.init_xp(xp)
    assert xp._argv_cache.stat().st_ino == before.st_ino
    xp._argv_cache.write_text('["sol')
    train.main.init_xp(xp)
    assert train.main.get_argv_from_sig(xp.sig) == ['solver=mmaudio/debug', 'seed=3']
    assert sorted(path.name for path in xp.folder.iterdir()) == ['.argv.json']
