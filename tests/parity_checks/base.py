"""What a parity check works with: the fixture that it reads and the report that it fills.

A module of this folder adds checks with a dictionary from kinds to functions::

    def check_rope(fixture: Fixture, report: Report) -> None:
        report.close('y', apply(fixture['x']), fixture['y'])

    CHECKS = {'mmaudio/rope': check_rope}
"""

import dataclasses
import functools
import json
import math
import typing as tp
from pathlib import Path

import torch
from safetensors import safe_open

from audiocraft.utils.config import build

# Tolerances of the recordings: of a system, or of one kind of it. Outputs recorded in bfloat16 have their own.
TOLERANCES = {
    'mmaudio': 1e-5, 'mmaudio/train_steps': 1e-4, 'mmaudio/train_steps_v2net': 1e-4,
    'audiocraft': 1e-4, 'vall_e': 1e-4,
}
TOLERANCE_BF16 = 2e-2


def _parse(text: str) -> tp.Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclasses.dataclass(frozen=True)
class Fixture:
    """One recording: a file with its companions, or a folder.

    Args:
        system (str): whose numbers they are: `mmaudio`, `audiocraft` or `vall_e`.
        kind (str): the kind without the system, as `network_v2`.
        path (Path): the main file or folder.
        files (dict): all its parts by role: `safetensors`, `json`, `grads`, `contents`, `folder`.
    """
    system: str
    kind: str
    path: Path
    files: dict[str, Path]

    @property
    def name(self) -> str:
        """`system/kind`, the key of the checks."""
        return f'{self.system}/{self.kind}'

    @property
    def tolerance(self) -> float:
        """Relative tolerance: the file's own (`tolerance` in its header), else that of its kind or system."""
        own = self.metadata.get('tolerance') if 'safetensors' in self.files else None
        return float(own or TOLERANCES.get(self.name, TOLERANCES[self.system]))

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the main safetensors file, with the dtypes of the file."""
        return self.load('safetensors')

    def load(self, role: str) -> dict[str, torch.Tensor]:
        """All tensors of the safetensors file with this role."""
        with safe_open(self.files[role], 'pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}

    @functools.cached_property
    def metadata(self) -> dict[str, tp.Any]:
        """The header of the safetensors file, values parsed as JSON where they are."""
        with safe_open(self.files['safetensors'], 'pt') as file:
            return {key: _parse(value) for key, value in (file.metadata() or {}).items()}

    @functools.cached_property
    def json(self) -> tp.Any:
        """The JSON file: the fixture itself, or the companion `X.json` of `X.safetensors`."""
        return self.read_json('json')

    def read_json(self, role: str) -> tp.Any:
        """The content of the JSON file with this role (`json`, `grads`)."""
        return json.loads(self.files[role].read_text())

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose key starts with `prefix`, without it."""
        return {key[len(prefix):]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    def state(self, prefix: str = 'sd.') -> dict[str, torch.Tensor]:
        """The state dict under `prefix`, floating tensors in fp32."""
        state = self.group(prefix)
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One compared value: its relative error, and why it is wrong if it is."""
    name: str
    rel_err: float
    problem: str = ''


class Report:
    """Collects the comparisons of one fixture; any problem makes it fail.

    Args:
        tolerance (float): relative tolerance, with `|a - e| <= tolerance * (|e| + max|e|)` for each element.
    """

    def __init__(self, *, tolerance: float = 1e-5):
        self.tolerance = tolerance
        self.comparisons: list[Comparison] = []

    @property
    def problems(self) -> list[str]:
        """One line for each comparison that went wrong, and one if nothing was compared."""
        if not self.comparisons:
            return ['nothing was compared']
        return [f'{item.name}: {item.problem}' for item in self.comparisons if item.problem]

    @property
    def max_rel_err(self) -> float:
        """Largest `max|a - e| / max|e|` of the comparisons."""
        return max((item.rel_err for item in self.comparisons), default=0.)

    def add(self, name: str, rel_err: float = 0., problem: str = '') -> None:
        """Record one comparison that was made elsewhere."""
        self.comparisons.append(Comparison(name, rel_err, problem))

    def close(self, name: str, actual: tp.Any, expected: tp.Any, *, tolerance: tp.Optional[float] = None) -> None:
        """Compare numbers (tensors, arrays, lists or scalars) within the tolerance, element by element.

        NaN and infinities must sit at the same places. Expected bfloat16 has the wider tolerance of that format.
        """
        actual, expected = _tensor(actual), _tensor(expected)
        if tolerance is None:
            tolerance = TOLERANCE_BF16 if expected.dtype == torch.bfloat16 else self.tolerance
        if actual.shape != expected.shape:
            return self.add(name, math.inf, f'shape is {list(actual.shape)}, expected {list(expected.shape)}')
        actual, expected = actual.double().cpu(), expected.double().cpu()
        finite = expected.isfinite()
        odd = ~((actual == expected) | (actual.isnan() & expected.isnan()))[~finite]
        if odd.any() or not actual[finite].isfinite().all():
            return self.add(name, math.inf, 'NaN or infinities at other places')
        error, size = (actual - expected)[finite].abs(), expected[finite].abs()
        scale = size.max().item() if size.numel() else 0.
        largest = error.max().item() if error.numel() else 0.
        rel_err = largest / scale if scale else largest
        wrong = int((error > tolerance * (size + scale) + 1e-30).sum())
        self.add(name, rel_err, f'{wrong} of {error.numel()} are off, by up to {rel_err:.2e}' if wrong else '')

    def equal(self, name: str, actual: tp.Any, expected: tp.Any) -> None:
        """Compare exactly: integers, booleans, strings, shapes, lists and dictionaries of them, integer tensors."""
        if isinstance(actual, torch.Tensor):
            actual = actual.tolist()
        if isinstance(expected, torch.Tensor):
            expected = expected.tolist()
        if actual == expected:
            return self.add(name)
        self.add(name, math.inf, f'is {_short(actual)}, expected {_short(expected)}')

    def check(self, name: str, condition: bool, problem: str = 'does not hold') -> None:
        """Record a condition."""
        self.add(name, 0. if condition else math.inf, '' if condition else problem)

    def numbers(self, name: str, actual: tp.Any, expected: tp.Any, *, tolerance: tp.Optional[float] = None) -> None:
        """Compare nested dictionaries and lists: floats within the tolerance, anything else exactly."""
        if isinstance(expected, dict) and isinstance(actual, dict):
            self.equal(f'{name} keys', sorted(map(str, actual)), sorted(map(str, expected)))
            for key in (key for key in expected if key in actual):
                self.numbers(f'{name}.{key}', actual[key], expected[key], tolerance=tolerance)
        elif isinstance(expected, float) or _is_floats(expected):
            self.close(name, actual, expected, tolerance=tolerance)
        else:
            self.equal(name, actual, expected)


def _tensor(value: tp.Any) -> torch.Tensor:
    return value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=torch.float64)


def _is_floats(value: tp.Any) -> bool:
    return isinstance(value, list) and bool(value) and any(isinstance(item, float) for item in value)


def _short(value: tp.Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f'{text[:200]}...'


CheckFn = tp.Callable[[Fixture, Report], None]


def build_loaded(target: str, config: dict[str, tp.Any], state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Build `target` with plain kwargs as a user's configuration does, and load `state` strictly, in eval mode."""
    module = build({'_target_': target, **config})
    module.load_state_dict(state, strict=True)
    return module.eval()
