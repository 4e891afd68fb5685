"""Pictures of sounds and of training: the one file that needs matplotlib.

Without matplotlib (`pip install 'audiocraft[plots]'`) nothing fails: the functions say so once in the log and return
None. Figures are drawn with Agg and no global state, so they may be made from any thread and without a display.
"""

import io
import logging
import math
import typing as tp
import warnings
from pathlib import Path

import torch

from ..modules.mel import LogMel
from ..utils.files import write_atomic

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:  # the only optional part of this file
    if (error.name or '').split('.')[0] != 'matplotlib':
        raise
    matplotlib = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

EXTRA = "pip install 'audiocraft[plots]'"
RANGE_DB = 80.
# Readable on white and on near black: the background of a picture is transparent.
INK = '#808791'
COLOURS = ['#3b82c4', '#d9822b', '#3a9d6b', '#b4559b', '#c0504d', '#7d70d3', '#8c8c3e', '#2aa0a4']
# What each panel of the curves shows; the order of the panels.
PANELS = {'loss': 'Losses', 'scores': 'Scores when evaluated, 0 to 1', 'distances': 'Other measures when evaluated'}
MAX_LINES = 8
# In the name of a measure that has no upper end, though its values may happen to lie below 1.
UNBOUNDED = ('distance', 'fd_', 'kid_', 'kl_', 'isc_', 'si_snr', 'visqol', 'relative_volume', 'perplexity', 'bitrate')

_told: set[str] = set()


def available() -> bool:
    """Whether pictures can be made; says once in the log what to install when not."""
    if matplotlib is None and 'matplotlib' not in _told:
        _told.add('matplotlib')
        logger.warning('No pictures: matplotlib is not installed (%s)', EXTRA)
    return matplotlib is not None


def log_mel_db(wav: torch.Tensor, sample_rate: int, n_mels: int = 80) -> torch.Tensor:
    """Log-mel spectrogram in dB under the loudest bin.

    Args:
        wav (Tensor): `[C, T]` or `[T]`; channels are averaged.
        sample_rate (int): in Hz.
        n_mels (int): number of bands from 40 Hz to the half of the sample rate.
    Returns:
        Tensor: `[n_mels, frames]`, from `-RANGE_DB` to 0; all `-RANGE_DB` for silence.
    """
    mono = wav.detach().float().cpu()
    mono = torch.nan_to_num(mono.mean(0) if mono.dim() == 2 else mono)
    n_fft = 2 ** max(6, round(math.log2(0.046 * sample_rate)))  # 46 ms: 1024 at 22 kHz
    if mono.numel() < n_fft:
        mono = torch.nn.functional.pad(mono, (0, n_fft - mono.numel()))
    mel = LogMel(sample_rate=sample_rate, n_fft=n_fft, hop=n_fft // 4, n_mels=n_mels, fmin=40., fmax=sample_rate / 2,
                 log='log10')
    with torch.no_grad():
        level = 20 * mel(mono[None])[0]
    if mono.abs().max() < 1e-5:
        return torch.full_like(level, -RANGE_DB)
    return (level - level.max()).clamp(min=-RANGE_DB)


def spectrogram_png(wav: torch.Tensor, sample_rate: int, path: str | Path,
                    events: list[dict[str, tp.Any]] | None = None, title: str | None = None,
                    axes: bool = True) -> Path | None:
    """Write a log-mel spectrogram of a sound.

    Args:
        wav (Tensor): `[C, T]` or `[T]`.
        sample_rate (int): in Hz.
        path (str or Path): `.png` file; replaced as a whole.
        events (list of dict or None): `{'time': seconds, 'kind': str}`; a thin line at each time.
        title (str or None): text above; axes only.
        axes (bool): False gives the bare picture, edge to edge, for pages that draw their own time axis.
    Returns:
        Path or None: `path`; None without matplotlib.
    """
    if not available():
        return None
    level = log_mel_db(wav, sample_rate).numpy()
    seconds = wav.shape[-1] / sample_rate
    figure = Figure(figsize=(8.6, 2.3) if axes else (8.6, 1.5), dpi=140)
    plot = figure.add_axes((0.07, 0.2, 0.92, 0.68) if axes else (0, 0, 1, 1))
    plot.imshow(level, origin='lower', aspect='auto', cmap='magma', vmin=-RANGE_DB, vmax=0.,
                extent=(0., max(seconds, 1e-3), 0., len(level)))
    for event in events or []:
        if 0 <= event['time'] <= seconds:
            plot.axvline(event['time'], color='#ffffff', linewidth=0.8, alpha=0.75)
    if axes:
        _style(plot, title or '')
        plot.set_xlabel('seconds', color=INK)
        plot.set_ylabel('mel band', color=INK)
    else:
        plot.axis('off')
    return _save(figure, path)


def curves_png(history: list[dict[str, tp.Any]], path: str | Path,
               panels: tp.Sequence[str] | None = None) -> Path | None:
    """Write the metrics over epochs: losses of train, valid and evaluate, and the measures of evaluate.

    Args:
        history (list): one dict per epoch, `{stage: {metric: value}}`.
        path (str or Path): `.png` file; replaced as a whole.
        panels (list of str or None): names of `PANELS`; by default those that have something to show.
    Returns:
        Path or None: `path`; None when there is nothing to show, or no matplotlib.
    """
    found = {name: lines for name, lines in curves(history).items() if panels is None or name in panels}
    if not found or not available():
        return None
    figure = Figure(figsize=(4.4 * len(found), 3.1), dpi=160, layout='constrained')
    for plot, (name, lines) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        _draw(plot, name, lines)
    return _save(figure, path)


Lines = dict[str, list[tuple[int, float]]]


def curves(history: list[dict[str, tp.Any]]) -> dict[str, Lines]:
    """Points `(epoch, value)` of every line of every panel that has any.

    Controls (`frozen/onset_f1`, `onset_f1_wrong_video`) and what `valid` reports too (the parts of a loss) are left out
    of what is shown of `evaluate`.
    """
    found: dict[str, Lines] = {name: {} for name in PANELS}
    for epoch, entry in enumerate(history, 1):
        for stage, metrics in entry.items():
            if isinstance(metrics, dict):
                for name, value in metrics.items():
                    if not any(name.startswith(f'{other}_') for other in metrics):
                        _add_point(found, stage, name, epoch, value)
    trained = {name for entry in history for name in (entry.get('valid') or {})}
    measured = {name: points for name, points in found['distances'].items() if name not in trained}
    found['scores'] = {name: points for name, points in measured.items() if _is_score(name, points)}
    found['distances'] = {name: points for name, points in measured.items() if name not in found['scores']}
    return {name: dict(list(lines.items())[:MAX_LINES]) for name, lines in found.items() if lines}


def _add_point(found: dict[str, Lines], stage: str, name: str, epoch: int, value: tp.Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return
    is_loss = name == 'loss' or name.endswith('_loss')
    if is_loss and stage in ('train', 'valid', 'evaluate'):
        line = stage if name == 'loss' else f'{stage} {name}'
        found['loss'].setdefault(line, []).append((epoch, float(value)))
    elif stage == 'evaluate' and '/' not in name and name not in ('duration', 'update', 'epoch'):
        found['distances'].setdefault(name, []).append((epoch, float(value)))


def _is_score(name: str, points: list[tuple[int, float]]) -> bool:
    return all(0 <= value <= 1 for _, value in points) and not any(part in f'{name}_' for part in UNBOUNDED)


def _draw(plot: tp.Any, name: str, lines: Lines) -> None:
    for (label, points), colour in zip(lines.items(), COLOURS):
        epochs, values = zip(*points)
        plot.plot(epochs, values, label=label.replace('_', ' '), color=colour, linewidth=1.8,
                  marker='o' if len(points) < 30 else None, markersize=3.5)
    every = [value for points in lines.values() for _, value in points]
    if name == 'scores':
        plot.set_ylim(-0.03, 1.03)
    elif min(every) > 0 and max(every) > 20 * min(every):
        plot.set_yscale('log')
    last = max(epoch for points in lines.values() for epoch, _ in points)
    plot.set_xlim(0.5 if last < 10 else 0, last + 0.5)
    _style(plot, PANELS[name])
    plot.grid(True, color=INK, alpha=0.22, linewidth=0.7)
    plot.set_xlabel('epoch', color=INK)
    plot.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    plot.legend(frameon=False, labelcolor=INK, fontsize=9)


def _style(plot: tp.Any, title: str) -> None:
    plot.set_title(title, color=INK, fontsize=11, loc='left')
    plot.tick_params(colors=INK, labelsize=9, which='both')
    for side, spine in plot.spines.items():
        spine.set_visible(side in ('left', 'bottom'))
        spine.set_color(INK)


def _save(figure: tp.Any, path: str | Path) -> Path:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # glyphs that the font lacks: a box is drawn, and that is all
        figure.savefig(buffer, format='png', transparent=True)
    write_atomic(path, buffer.getvalue())
    return Path(path)
