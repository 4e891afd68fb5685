"""Running means of metrics that stay on their device until somebody reads them."""
import math
import typing as tp

import torch

from .errors import UserError

Value = float | int | torch.Tensor


class Averager:
    """Weighted running mean of named scalars.

    Tensors are copied on their own device and read back together, in `compute` alone: no synchronisation per update.
    Sums are made in order of arrival, in double precision, so the result does not depend on how often
    `compute` was called, nor on a `state_dict` in between. Non-finite values are left out and counted in `nonfinite`.
    """
    def __init__(self) -> None:
        self._pending: list[tuple[str, Value, float]] = []
        self._sums: dict[str, list[float]] = {}  # name -> [weighted sum, weight, number of non-finite values]

    def update(self, metrics: tp.Mapping[str, Value], weight: float = 1.) -> None:
        """Add one value of each metric.

        Args:
            metrics (dict): name to number, or to a tensor of one element on any device.
            weight (float): weight of these values, e.g. the number of items in the batch.
        """
        for name, value in metrics.items():
            if isinstance(value, torch.Tensor):
                if value.numel() != 1:
                    raise ValueError(f'Metric "{name}" must be a single number, got a tensor of shape '
                                     f'{tuple(value.shape)}.')
                # A copy: the caller may write into its tensor, and a view would keep a large one alive.
                value = value.detach().reshape(()).clone()
            self._pending.append((name, value, float(weight)))

    def _read_pending(self) -> list[float]:
        """Read all pending values, with one transfer per device."""
        values: list[tp.Any] = [value for _, value, _ in self._pending]
        devices: dict[torch.device, list[int]] = {}
        for index, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                devices.setdefault(value.device, []).append(index)
        for indexes in devices.values():
            by_dtype: dict[torch.dtype, list[int]] = {}
            for index in indexes:
                by_dtype.setdefault(values[index].dtype, []).append(index)
            for group in by_dtype.values():
                for index, number in zip(group, torch.stack([values[i] for i in group]).tolist()):
                    values[index] = number
        return [float(value) for value in values]

    def _flush(self) -> None:
        if not self._pending:
            return
        for (name, _, weight), value in zip(self._pending, self._read_pending()):
            sums = self._sums.setdefault(name, [0., 0., 0.])
            if math.isfinite(value):
                sums[0] += weight * value
                sums[1] += weight
            else:
                sums[2] += 1
        self._pending.clear()

    def compute(self) -> dict[str, float]:
        """Return the mean of each metric so far, NaN for one that was never finite. Waits for the device."""
        self._flush()
        return {name: total / weight if weight else math.nan for name, (total, weight, _) in self._sums.items()}

    @property
    def nonfinite(self) -> dict[str, int]:
        """How many values of each metric were NaN or infinite; metrics with none are not listed."""
        self._flush()
        return {name: int(sums[2]) for name, sums in self._sums.items() if sums[2]}

    def state_dict(self) -> dict[str, list[float]]:
        """Return the sums as plain numbers."""
        self._flush()
        return {name: list(sums) for name, sums in self._sums.items()}

    def load_state_dict(self, state: tp.Mapping[str, tp.Sequence[float]]) -> None:
        """Go on from what `state_dict` returned."""
        self._pending.clear()
        self._sums = {name: [float(number) for number in sums] for name, sums in state.items()}

    @classmethod
    def merged(cls, states: tp.Sequence[tp.Mapping[str, tp.Sequence[float]]]) -> 'Averager':
        """The mean over what several processes have seen, from the `state_dict` of each.

        Raises:
            UserError: they do not have the same metrics.
        """
        for number, state in enumerate(states):
            if state.keys() != states[0].keys():
                ours, theirs = sorted(states[0].keys() - state.keys()), sorted(state.keys() - states[0].keys())
                raise UserError(f'The processes have different metrics: {", ".join(ours) or "none"} only on process 0, '
                                f'{", ".join(theirs) or "none"} only on process {number}. run_step must fill the same '
                                'names on all processes.')
        whole = cls()
        whole._sums = {name: [sum(parts) for parts in zip(*(state[name] for state in states))] for name in states[0]}
        return whole
