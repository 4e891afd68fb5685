"""Post-hoc exponential moving averages: choose the length of the average after the training.

Two (or more) power-function averages are kept and saved now and then; any other average is a linear combination of
these snapshots, solved for in the least-squares sense. Source: Karras et al., *Analyzing and Improving the Training
Dynamics of Diffusion Models* (EDM2), 2024, section 3 and appendix C.
"""

import json
import logging
import typing as tp
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from .. import distrib
from ..utils.errors import UserError
from ..utils.files import fsync_dir, sha256_of, write_atomic
from .ema import Average, ModuleStates

logger = logging.getLogger(__name__)

MANIFEST = 'manifest.json'


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma of the power function whose relative width is `sigma_rel`.

    It is the largest real root of `x^3 + 7 x^2 + (16 - t) x + (12 - t)` with `t = sigma_rel^-2`. Widths from 0 up to
    0.2886 (gamma 0) exist.
    """
    if not 0 < sigma_rel < 12 ** -0.5:
        raise UserError(f'sigma_rel must lie between 0 and {12 ** -0.5:.4f}, got {sigma_rel}')
    t = sigma_rel ** -2
    roots = np.roots([1., 7., 16. - t, 12. - t])
    return float(roots[np.abs(roots.imag) < 1e-9 * np.abs(roots)].real.max())


def beta_of(step: int, gamma: float, updates: int = 1, step_size_correction: bool = True) -> float:
    """The decay at `step` (counted from 1) of an average that is updated every `updates` steps.

    With `step_size_correction` the decays of the skipped steps are approximated by the geometric mean of the first and
    the last of them, to the power of `updates`; without, the decay is that of a single step.
    """
    first = (1 - 1 / (step + 1)) ** (1 + gamma)
    if not step_size_correction:
        return first
    last = (1 - 1 / (step + 1 + updates)) ** (1 + gamma)
    return (first * last) ** (updates / 2)


def overlap(step_a: torch.Tensor, gamma_a: torch.Tensor, step_b: torch.Tensor, gamma_b: torch.Tensor) -> torch.Tensor:
    """The inner product of two power-function profiles (EDM2, eq. 136); broadcasts, float64."""
    ratio = step_a / step_b
    exponent = torch.where(step_a < step_b, gamma_b, -gamma_a)
    numerator = (gamma_a + 1) * (gamma_b + 1) * ratio ** exponent
    return numerator / ((gamma_a + gamma_b + 1) * torch.maximum(step_a, step_b))


def combination(steps: tp.Sequence[int], gammas: tp.Sequence[float], step: int, gamma: float) -> torch.Tensor:
    """Weights `[N]` (float64) with which N snapshots come closest to the profile of `gamma` at `step`."""
    t, g = torch.tensor(steps, dtype=torch.float64), torch.tensor(gammas, dtype=torch.float64)
    target_t, target_g = torch.tensor(step, dtype=torch.float64), torch.tensor(gamma, dtype=torch.float64)
    products = overlap(t[:, None], g[:, None], t[None, :], g[None, :])
    return torch.linalg.solve(products, overlap(t, g, target_t, target_g))


class PostHocEMA(Average):
    """Keeps one power-function average per width, and writes them to `folder` every `snapshot_every` steps.

    The state lists the snapshots of this run with their sha256. Only listed ones take part in `synthesize`, so that
    files of another run, or of steps that were lost with a killed process, never mix in; on resume they are removed.

    Args:
        modules, updates: see `Average`.
        sigma_rels: relative widths of the averages, at least two different ones for a synthesis.
        snapshot_every (int or None): steps between two snapshots; None writes none.
        folder: where they go; None writes none.
        step_size_correction (bool): see `beta_of`.
        output_sigma (float): relative width of the average that a finished training is tested with.
    """

    def __init__(self, modules: tp.Mapping[str, nn.Module], *, sigma_rels: tp.Sequence[float] = (0.05, 0.1),
                 updates: int = 1, snapshot_every: int | None = None, folder: Path | str | None = None,
                 step_size_correction: bool = True, output_sigma: float = 0.05):
        super().__init__(modules, updates=updates)
        self.sigma_rels = [float(sigma) for sigma in sorted(sigma_rels)]
        if len(set(self.sigma_rels)) != len(self.sigma_rels) or not self.sigma_rels:
            raise UserError(f'sigma_rels must be different from each other and at least one, got {list(sigma_rels)}')
        self.gammas = [gamma_of(sigma) for sigma in self.sigma_rels]
        self.snapshot_every = snapshot_every
        self.folder = None if folder is None else Path(folder)
        self.step_size_correction = step_size_correction
        self.output_sigma = output_sigma
        gamma_of(output_sigma)  # refused now, and not when the training is done
        self._averages = [self._new_averages() for _ in self.sigma_rels]
        self.snapshots: list[dict[str, tp.Any]] = []

    @classmethod
    def of_snapshots(cls, modules: tp.Mapping[str, nn.Module], state: tp.Mapping[str, tp.Any],
                     folder: Path | str) -> 'PostHocEMA':
        """Only to synthesize: what a checkpoint says (`state_dict`) of the snapshots in a folder; changes no file."""
        if 'snapshots' not in state:
            raise UserError(f'{folder}: the average of this training is not post-hoc (optim/ema=posthoc): there is '
                            'one width only.')
        ema = cls(modules, sigma_rels=state['sigma_rels'], folder=folder)
        ema.steps, ema.snapshots = int(state['steps']), [dict(snapshot) for snapshot in state['snapshots']]
        return ema

    def _current(self) -> list[torch.Tensor]:
        return self._averages[0]

    def step(self) -> None:
        """Call once after each update of the parameters; writes the snapshots when their step has come."""
        super().step()
        if self.snapshot_every and self.folder is not None and self.steps % self.snapshot_every == 0:
            self._write_snapshots(self.folder)

    def finish(self) -> None:
        """Write the snapshots of the last step as well, so that `final` is the average of all of the training."""
        written = any(snapshot['step'] == self.steps for snapshot in self.snapshots)
        if self.snapshot_every and self.folder is not None and self.steps and not written:
            self._write_snapshots(self.folder)

    def _update_averages(self) -> None:
        first = self.steps // self.updates == 1
        for gamma, averages in zip(self.gammas, self._averages, strict=True):
            beta = 0. if first else beta_of(self.steps, gamma, self.updates, self.step_size_correction)
            self._lerp(averages, 1 - beta)

    def _write_snapshots(self, folder: Path) -> None:
        for index, averages in enumerate(self._averages):
            states = self._assembled(averages)
            if distrib.is_rank_zero():
                self._write_snapshot(folder, index, self.steps, states)
        self._list_snapshots(folder)

    def _write_snapshot(self, folder: Path, index: int, step: int, states: ModuleStates) -> None:
        flat = {f'{name}/{key}': tensor.contiguous() for name, state in states.items() for key, tensor in state.items()}
        path = folder / f'{index}.{step}.safetensors'
        about = {'sigma_rel': repr(self.sigma_rels[index])}  # one key: their order in the file is random
        write_atomic(path, safetensors.torch.save(flat, about))
        self.snapshots.append({'step': step, 'index': index, 'file': path.name, 'sha256': sha256_of(path)})

    def _list_snapshots(self, folder: Path) -> None:
        self.snapshots = distrib.from_rank_zero(lambda: self.snapshots)
        if distrib.is_rank_zero():
            self._write_manifest(folder)

    def adopt(self, snapshots: tp.Iterable[tuple[int, int, tp.Callable[[], ModuleStates]]]) -> None:
        """Copy snapshots of the same training that were made elsewhere, so that they take part in `synthesize`.

        Args:
            snapshots: `(index of the width in sigma_rels, step, function that reads the average)`; process 0 alone
                reads, one after the other.
        """
        if self.folder is None:
            return
        if distrib.is_rank_zero():
            for index, step, read in snapshots:
                self._write_snapshot(self.folder, index, step, read())
        self._list_snapshots(self.folder)

    def _write_manifest(self, folder: Path) -> None:
        content = {'sigma_rels': self.sigma_rels, 'gammas': self.gammas, 'snapshots': self.snapshots}
        write_atomic(folder / MANIFEST, json.dumps(content, indent=1) + '\n')

    def final(self) -> ModuleStates:
        """The average of width `output_sigma`, made from the snapshots; the narrowest one while there are none."""
        return self.synthesize(self.output_sigma) if self.snapshots else self.averaged()

    def synthesize(self, sigma_rel: float, step: int | None = None) -> ModuleStates:
        """The average of width `sigma_rel` at `step` (the last snapshot's by default), as complete state dicts.

        Every listed snapshot takes part. Frozen parameters and integer buffers are those of the modules. UserError when
        there are no snapshots, or when one of their files is missing or is not the one this run wrote.
        """
        if not self.snapshots or self.folder is None:
            raise UserError('post-hoc synthesis needs snapshots, and there are none yet: they are written every '
                            f'{self.snapshot_every} steps (optim.ema.snapshot_every), and {self.steps} are done')
        listed = sorted(self.snapshots, key=lambda snapshot: (snapshot['index'], snapshot['step']))
        steps = [snapshot['step'] for snapshot in listed]
        weights = combination(steps, [self.gammas[snapshot['index']] for snapshot in listed],
                              max(steps) if step is None else step, gamma_of(sigma_rel))
        sums = [torch.zeros(tensor.shape, dtype=torch.float64) for tensor in self._live()]
        for snapshot, weight in zip(listed, weights.tolist(), strict=True):
            tensors = [tensor.double() for tensor in self._read_snapshot(self.folder, snapshot)]
            torch._foreach_add_(sums, tensors, alpha=weight)
        parts = [distrib.part_like(total, live) for total, live in zip(sums, self._live(), strict=True)]
        return self._full_states(total.to(mine) for total, mine in zip(parts, self._current(), strict=True))

    def _read_snapshot(self, folder: Path, snapshot: dict[str, tp.Any]) -> list[torch.Tensor]:
        path = folder / snapshot['file']
        if not path.exists():
            raise UserError(f'{path}: this snapshot of the average is missing; post-hoc synthesis needs all of them')
        if sha256_of(path) != snapshot['sha256']:
            raise UserError(f'{path}: this is not the snapshot that this run wrote (its sha256 differs)')
        with safetensors.safe_open(path, 'pt') as file:
            return [file.get_tensor(f'{name}/{key}') for name, key, _, _ in self._entries]

    def state_dict(self) -> dict[str, tp.Any]:
        """`steps`, `sigma_rels`, one entry of `averages` per width, and the list of `snapshots`."""
        return {'steps': self.steps, 'sigma_rels': list(self.sigma_rels),
                'averages': [self._assembled(averages) for averages in self._averages],
                'snapshots': [dict(snapshot) for snapshot in self.snapshots]}

    def load_state_dict(self, state: dict[str, tp.Any]) -> None:
        """Continue saved averages. Snapshot files that the state does not list are removed from the folder."""
        if list(state['sigma_rels']) != self.sigma_rels:
            raise UserError(f'optim.ema.sigma_rels is {self.sigma_rels}, but the checkpoint was made with '
                            f'{list(state["sigma_rels"])}: keep those, or start another run')
        for averages, states in zip(self._averages, state['averages'], strict=True):
            self._load(averages, states)
        self.steps = int(state['steps'])
        self.snapshots = [dict(snapshot) for snapshot in state['snapshots']]
        if self.folder is not None and self.folder.is_dir() and distrib.is_rank_zero():
            self._drop_unlisted(self.folder)

    def _drop_unlisted(self, folder: Path) -> None:
        listed = {snapshot['file'] for snapshot in self.snapshots}
        unlisted = [path for path in sorted(folder.glob('*.*.safetensors')) if path.name not in listed]
        for path in unlisted:
            logger.info('Removing %s: it is later than the checkpoint or of another run.', path)
            path.unlink()
        if unlisted:
            self._write_manifest(folder)
            fsync_dir(folder)
