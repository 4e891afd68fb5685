"""Every variant composes; every `_target_` exists and takes the keys beside it; every key is read by somebody."""

import ast
import inspect
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from audiocraft.cli.extract import read_config
from audiocraft.cli.overview import solver_variants
from audiocraft.train import main
from audiocraft.utils.config import flatten, locate, to_plain

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'config'
# `use` says whether the object of the node is made at all.
SPECIAL = {'_target_', '_partial_', '_args_', '_recursive_', '_convert_', 'use'}
VARIANTS = sorted(solver_variants())
EXTRACTS = sorted(path.stem for path in (CONFIG / 'extract').glob('*.yaml'))
# Read by Dora and Hydra, not by us.
FOREIGN = ('dora.', 'slurm.', 'hydra.')


def nodes(tree, path=''):
    """All nodes with a `_target_`, with their dotted paths."""
    if isinstance(tree, dict):
        if '_target_' in tree:
            yield path, tree
        for key, value in tree.items():
            yield from nodes(value, f'{path}.{key}' if path else key)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from nodes(value, f'{path}[{index}]')


def problems_of_node(path, node):
    """What does not fit between a node and what its `_target_` names."""
    found = locate(node['_target_'])
    parameters = inspect.signature(found).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    # The class of a solver is called with the whole config; the keys beside it are not arguments.
    unknown = set(node) - SPECIAL - set(parameters)
    return [f'{path}: {node["_target_"]} has no argument "{key}"' for key in sorted(unknown)]


def config_of(variant):
    return to_plain(main.get_xp([f'solver={variant}']).cfg)


@pytest.mark.parametrize('variant', VARIANTS)
def test_variant(variant):
    config = config_of(variant)
    assert config['solver'], f'{variant} has no solver._target_'
    assert [problem for path, node in nodes(config) for problem in problems_of_node(path, node)] == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_another_schedule_is_that_schedule(variant):
    """Values of the one that a variant chooses belong into its own yaml: they would be left over in another."""
    assert main.get_xp([f'solver={variant}', 'schedule=none']).cfg.schedule is None
    schedule = to_plain(main.get_xp([f'solver={variant}', 'schedule=inverse_sqrt']).cfg.schedule)
    assert schedule == to_plain(OmegaConf.load(CONFIG / 'schedule' / 'inverse_sqrt.yaml'))


@pytest.mark.parametrize('name', EXTRACTS)
def test_extract(name):
    config = read_config(name, [])
    signature = inspect.signature(locate('audiocraft.features.extract.extract'))
    assert set(config) <= set(signature.parameters)
    assert [problem for path, node in nodes(config) for problem in problems_of_node(path, node)] == []


def yaml_targets(path):
    """The nodes of one yaml, interpolations left as they are."""
    return list(nodes(OmegaConf.to_container(OmegaConf.load(path), resolve=False)))


@pytest.mark.parametrize('path', [path for path in sorted(CONFIG.rglob('*.yaml')) if yaml_targets(path)],
                         ids=lambda path: path.relative_to(CONFIG).as_posix())
def test_each_yaml(path):
    """Also the yaml files that no variant composes."""
    assert [problem for key, node in yaml_targets(path) for problem in problems_of_node(key, node)] == []


def test_misspelled_keys_are_found():
    node = {'_target_': 'torch.nn.Linear', 'in_features': 1, 'out_feature': 2}
    assert problems_of_node('model', node) == ['model: torch.nn.Linear has no argument "out_feature"']


def words_of_source():
    """Every attribute, argument and word of a text in the package's code."""
    words = set()
    for path in (ROOT / 'audiocraft').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
                words.update(re.split(r'[^\w]+', node.value))
            elif isinstance(node, ast.arg | ast.keyword) and node.arg:
                words.add(node.arg)
    return words


def unread_keys(config, words):
    """The keys outside of `_target_` nodes (whose keys are arguments) that no code names."""
    inside = tuple(f'{path}.' for path, _ in nodes(config))
    keys = [key for key in flatten(config) if not key.startswith((*FOREIGN, *inside))]
    # What a node is called (a metric, a loss) is the yaml's choice, also where a weight is given to it.
    chosen = {path.rsplit('.', 1)[-1] for path, _ in nodes(config)}
    return sorted({part for key in keys for part in key.split('.')} - words - chosen)


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_key_is_read(variant):
    assert unread_keys(config_of(variant), words_of_source()) == []


def test_unread_keys_are_found():
    config = {'optim': {'lr': 1, 'momemtum_of_nobody': 2}, 'model': {'_target_': 'x', 'anything': 1}}
    assert unread_keys(config, words_of_source()) == ['momemtum_of_nobody']


def groups_by_value(groups):
    """Folders with yaml files below that Dora does not see as groups: choosing there would be hashed by value."""
    folders = {path.name for path in CONFIG.iterdir() if path.is_dir() and any(path.rglob('*.yaml'))}
    return sorted(folders - set(groups))


def test_every_folder_is_a_group():
    assert groups_by_value(main._config_groups) == []
    assert groups_by_value(['solver']) != []


def test_base_has_no_mandatory_value():
    """A `???` in the base ends every command of Dora."""
    assert [key for key, value in flatten(to_plain(main.get_xp([]).cfg)).items() if value == '???'] == []


NOT_TRAINING = ['device', 'num_threads', 'show', 'execute_only', 'execute_inplace', 'logging.log_updates',
                'checkpoint.keep_last', 'evaluate.every', 'generate.every', 'optim.accumulate', 'dataset.num_workers',
                'evaluate.metrics', 'allow_config_change']
TRAINING = ['seed', 'optim.lr', 'optim.epochs', 'dataset.batch_size', 'dset.train.stores', 'dset.evaluate.stores',
            'dset.root', 'continue_from', 'autocast', 'optim.ema.decay', 'schedule.warmup', 'adversarial.every',
            'dataset.train.num_samples', 'dataset.valid.num_samples', 'model.depth', 'codec']


def test_signature_counts_what_changes_training():
    excluded = main.dora.is_excluded
    assert [key for key in NOT_TRAINING if not excluded(key)] == []
    assert [key for key in TRAINING if excluded(key)] == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_no_pattern_excludes_model_or_optimizer(variant):
    keys = [key for key in flatten(config_of(variant)) if key.startswith(('model.', 'schedule.', 'optim.', 'dset.'))]
    excluded = [key for key in keys if any(fnmatch(key, pattern) for pattern in main.dora.exclude)]
    assert set(excluded) <= {'optim.accumulate'}


@pytest.mark.parametrize('variant', VARIANTS)
def test_first_lines_say_what_it_is(variant):
    head = [line for line in (CONFIG / 'solver' / f'{variant}.yaml').read_text().splitlines() if line.startswith('#')]
    text = ' '.join(head)
    assert f'solver={variant}' in text, 'say how to run it'
    assert len(head) >= 3, 'say how long it takes and what to expect'
