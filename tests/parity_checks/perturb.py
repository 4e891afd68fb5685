"""Copies of fixtures with one number changed, which the checks must notice."""

import json
import shutil
import typing as tp
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from .base import Fixture

# Keys that tell how a file was made, and inputs that may change a little without an effect.
INERT = ('seed', 'config', 'h', 'hyper', 'note', 'n_samples', 'pred_click_times', 'gt_times')


def copy_fixture(fixture: Fixture, folder: Path) -> dict[str, Path]:
    """Copy all parts of a fixture to `folder`, and return them by role."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in fixture.files.values():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    return {role: folder / path.name for role, path in fixture.files.items()}


def perturb_tensors(path: Path) -> None:
    """Change one element of one floating tensor of a file: of a weight if there is one, of several elements if any.

    A single bias can be too small to show: 0.01 beside logits in the thousands is within any tolerance.
    """
    with safe_open(path, 'pt') as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    floating = sorted(key for key, value in tensors.items() if value.is_floating_point())
    weights = [key for key in floating if any(part.startswith('sd') for part in key.split('.'))]
    candidates = weights or floating
    flat = tensors[next((key for key in candidates if tensors[key].numel() > 1), candidates[0])].view(-1)
    place = int(flat.float().nan_to_num(posinf=0., neginf=0.).abs().argmax())
    flat[place] = flat[place] * 1.25 + 0.01
    save_file(tensors, path, metadata)


def _numbers(node: tp.Any) -> tp.Iterator[tuple[tp.Any, tp.Any]]:
    """All (container, key) of numbers, in the order of the file."""
    items: tp.Iterable = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key in INERT:
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield node, key
        yield from _numbers(value)


def perturb_json(path: Path) -> None:
    """Change one number of a file, a fraction if there is one."""
    content = json.loads(path.read_text())
    numbers = list(_numbers(content))
    node, key = next((pair for pair in numbers if isinstance(pair[0][pair[1]], float)), numbers[0])
    node[key] = node[key] * 1.25 + 0.01 if isinstance(node[key], float) else node[key] + 1
    path.write_text(json.dumps(content))


def perturbations(fixture: Fixture) -> dict[str, tp.Callable[[Path], tp.Any]]:
    """How the parts of a fixture can be changed, by role; a file of integers cannot."""
    changes: dict[str, tp.Callable[[Path], tp.Any]] = {}
    for role in fixture.files:
        if role in ('safetensors', 'contents'):
            with safe_open(fixture.files[role], 'pt') as file:
                if any(file.get_slice(key).get_dtype() in ('F32', 'F16', 'BF16', 'F64') for key in file.keys()):
                    changes[role] = perturb_tensors
        elif role in ('json', 'grads'):
            changes[role] = perturb_json
    return changes

