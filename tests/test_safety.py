"""Code that runs what it reads is not written here: no pickle, no eval, no shell, no download by the way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('audiocraft', 'scripts', 'grids', 'benchmarks')
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py'))

MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'shelve', 'marshal', 'joblib', 'telnetlib', 'pty'}
CALLS = {'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen', 'torch.hub.load',
         'torch.hub.load_state_dict_from_url',
         'yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'tempfile.mktemp', 'subprocess.getoutput', 'sp.getoutput'}
KEYWORDS = {('shell', True), ('allow_pickle', True), ('trust_remote_code', True), ('weights_only', False)}
# Methods that are dangerous whatever they are called on.
METHODS = {'extractall'}


def dangers(text: str) -> list[str]:
    """What a file does that it should not, one line each."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [f'{node.lineno}: import {name}' for name in names if name.split('.')[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or '').split('.')[0] in MODULES:
            found.append(f'{node.lineno}: from {node.module} import')
        elif isinstance(node, ast.Call):
            found += [f'{node.lineno}: {what}' for what in dangers_of_call(node)]
    return found


def dangers_of_call(node: ast.Call) -> list[str]:
    """What is wrong with one call."""
    name = ast.unparse(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    found = [name] if name in CALLS or name.rpartition('.')[2] in METHODS else []
    values = {key: value.value for key, value in keywords.items() if isinstance(value, ast.Constant)}
    found += [f'{name}({key}={value})' for key, value in KEYWORDS if key in values and values[key] is value]
    if name == 'torch.load' and values.get('weights_only') is not True:
        found.append('torch.load without weights_only=True')
    return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_is_safe(path):
    assert dangers(path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize('text', [
    'import pickle', 'from pickle import loads', 'import dill as p', 'eval("1")', 'exec(x)', 'os.system("ls")',
    'torch.load(path)', 'torch.load(path, weights_only=False)', 'np.load(path, allow_pickle=True)',
    'sp.run("ls", shell=True)', 'yaml.load(text)', 'archive.extractall(folder)', 'torch.hub.load("a", "b")',
    'AutoModel.from_pretrained(name, trust_remote_code=True)',
])
def test_finds_what_is_not_safe(text):
    assert dangers(text) != []


@pytest.mark.parametrize('text', [
    'torch.load(path, map_location="cpu", weights_only=True)', 'model.eval()', 'sp.run(["ls"], check=True)',
    're.compile(pattern)', 'torch.compile(model)', 'yaml.safe_load(text)', 'np.load(path)',
])
def test_finds_nothing_in_safe_code(text):
    assert dangers(text) == []
