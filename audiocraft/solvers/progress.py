"""Where an epoch is, and its means over all processes."""

import typing as tp
from dataclasses import dataclass, field

from .. import distrib
from ..utils.averager import Averager


@dataclass
class Progress:
    """Where an epoch is: everything that its train metrics depend on.

    Attributes:
        done (int): updates of this epoch that are done.
        seconds (float): time spent in its train stage by earlier processes.
        skipped (int): updates in a row that were skipped.
        mean (Averager): metrics since the start of the epoch.
        window (Averager): metrics since the last log line.
    """
    done: int = 0
    seconds: float = 0.
    skipped: int = 0
    mean: Averager = field(default_factory=Averager)
    window: Averager = field(default_factory=Averager)

    def means(self) -> dict[str, tp.Any]:
        """Return the means of this process, as plain numbers."""
        return {'mean': self.mean.state_dict(), 'window': self.window.state_dict()}

    def state_dict(self) -> dict[str, tp.Any]:
        """Return plain numbers, with the means over all processes. All must ask for it."""
        return {'done': self.done, 'seconds': self.seconds, 'skipped': self.skipped,
                'mean': merged(self.mean).state_dict(), 'window': merged(self.window).state_dict()}

    def load_state_dict(self, state: tp.Mapping[str, tp.Any], own: tp.Mapping[str, tp.Any] | None = None) -> None:
        """Go on from what `state_dict` returned.

        Args:
            state (dict): of all processes.
            own (dict or None): `means()` of this process; None: their number has changed, and process 0 takes all.
        """
        self.done, self.seconds, self.skipped = state['done'], state['seconds'], state['skipped']
        for name, averager in (('mean', self.mean), ('window', self.window)):
            sums = state[name] if own is None else own[name]
            if own is None and not distrib.is_rank_zero():
                sums = {metric: [0.] * len(values) for metric, values in sums.items()}
            averager.load_state_dict(sums)


def merged(averager: Averager) -> Averager:
    """The means over all processes, which must ask for it together.

    Raises:
        UserError: they do not have the same metrics.
    """
    if not distrib.is_distributed():
        return averager
    return Averager.merged(distrib.gather(averager.state_dict()))
