"""One card per generated clip: what was asked, what came out, and the truth beside it."""

import hashlib
import json
import logging
import typing as tp
from pathlib import Path

import torch

from ..data.audio import read_audio, resample, write_audio
from ..utils.errors import UserError
from . import assets, plots
from .markup import Html, tag
from .meanings import words
from .results import ClipResult, is_number
from .table import format_value

logger = logging.getLogger(__name__)

HIDDEN = {'update', 'sample_rate', 'wav', 'video'}


class Assets:
    """The files beside a page. Names carry a stamp of the source, so an unchanged file is never made again and a page
    that is being replaced keeps its own files until the new one is there.

    Args:
        folder (Path): where `index.html` goes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.kept: set[Path] = set()

    def path(self, group: str, name: str, stamp: str, suffix: str) -> Path:
        """Where an asset goes; it is kept from now on."""
        path = self.folder / group / f'{assets.safe_name(name)}-{stamp}{suffix}'
        self.kept.add(path)
        return path

    def media(self, source: Path, group: str, name: str, *, link: bool) -> str:
        """Put a media file beside the page; returns its relative link."""
        target = self.path(group, name, stamp_of(source), source.suffix.lower())
        if not target.exists():
            assets.place(source, target, link=link)
        return self.link(target)

    def link(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def stamp_of(source: Path, *more: tp.Any) -> str:
    """Eight characters that change when the file is another one, or `more` is."""
    stat = source.stat()
    text = json.dumps([str(source), stat.st_size, stat.st_mtime_ns, *more])
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]


def card(clip: ClipResult, update: int | None, files: Assets, notes: list[str]) -> Html:
    """The card of one clip; what cannot be shown is said in `notes`."""
    group = str(update) if update is not None else 'clips'
    seconds = clip.duration or _seconds(clip.audio, notes)
    events = clip.events or []
    rate = clip.details.get('sample_rate')
    takes = [_take(clip.label or 'Generated', files.media(clip.media, group, clip.id, link=True),
                   _picture(clip.audio, 0., seconds, group, clip.id, files, notes), events, 0., seconds)]
    truth = _truth(clip, seconds, rate if isinstance(rate, int) and rate > 0 else None, files, notes)
    if truth is not None:
        takes.append(_take('Truth', *truth, events, clip.start, seconds))
    prompt = tag('p', clip.prompt or clip.id, class_='prompt', dir='auto')
    # Pictures that move need the width of the card; of sounds alone two fit side by side.
    moving = any(Path(path).suffix.lower() in assets.VIDEO for path in (clip.media, clip.reference) if path)
    shown = takes if moving else tag('div', takes, class_='pair')
    return tag('article', prompt, _facts(clip), shown, class_='card')


def _facts(clip: ClipResult) -> Html:
    details = {name: _without(value, clip.prompt) for name, value in clip.details.items() if name not in HIDDEN}
    title = [('id', clip.id)] if clip.prompt else []  # else the id is the title
    items = [*title, *clip.scores.items(), *details.items()]
    return tag('ul', [tag('li', f'{words(str(name))} ', tag('b', _plain(value))) for name, value in items
                      if value not in (None, '', {}, [])], class_='facts')


def _without(value: tp.Any, prompt: str) -> tp.Any:
    """Conditions without the prompt, which is the title of the card."""
    return {k: v for k, v in value.items() if v not in (prompt, None)} if isinstance(value, dict) else value


def _plain(value: tp.Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else format_value(value, 3)


def _truth(clip: ClipResult, seconds: float, rate: int | None, files: Assets, notes: list[str]
           ) -> tuple[str, str | None] | None:
    """Links of the truth's media and spectrogram; media that no browser plays are shown by their sound.

    The spectrogram is that of the truth at the `rate` of the generated sound, so that the two have one axis.
    """
    source = clip.reference
    if source is None or source.suffix.lower() not in assets.CONTAINERS:
        return None
    picture = _picture(source, clip.start, seconds, 'truth', clip.id, files, notes, rate)
    if source.suffix.lower() in assets.VIDEO | assets.AUDIO:
        # The fragment makes the player stop where the generated clip stops.
        return f'{files.media(source, "truth", clip.id, link=False)}#t={clip.start:g},{clip.start + seconds:g}', picture
    target = files.path('truth', clip.id, stamp_of(source, 'sound'), '.wav')
    if not target.exists():
        sound = _read(source, 0., None, notes)
        if sound is None:
            return None
        write_audio(target, *sound)
    return files.link(target), picture


def _picture(source: Path, start: float, seconds: float, group: str, name: str, files: Assets,
             notes: list[str], rate: int | None = None) -> str | None:
    """Link of the spectrogram of `seconds` of a file, silence after its end, so that two of them line up."""
    if not plots.available():
        return None
    target = files.path(group, name, stamp_of(source, start, seconds, rate), '.png')
    if not target.exists():
        sound = _read(source, start, seconds, notes)
        if sound is None:
            return None
        wav, sample_rate = sound
        if rate is not None:
            wav, sample_rate = resample(wav, sample_rate, rate), rate
        missing = max(0, round(seconds * sample_rate) - wav.shape[-1])
        plots.spectrogram_png(torch.nn.functional.pad(wav, (0, missing)), sample_rate, target, axes=False)
    return files.link(target)


def _read(source: Path, start: float, seconds: float | None, notes: list[str]) -> tuple[torch.Tensor, int] | None:
    """Sound of a file, or a note: a page is a report, and no media file of a user may stop it."""
    try:
        return read_audio(source, start=start, duration=seconds)
    except (UserError, ImportError, OSError, RuntimeError, ValueError) as error:
        notes.append(f'{source.name}: its sound could not be read ({error})')
        return None


def _seconds(source: Path, notes: list[str]) -> float:
    sound = _read(source, 0., None, notes)
    return sound[0].shape[-1] / sound[1] if sound is not None and sound[0].shape[-1] else 1.


def _take(title: str, link: str, picture: str | None, events: list[dict[str, tp.Any]], start: float,
          seconds: float) -> Html:
    """A player and, under the same time axis for every take of a card, its spectrogram."""
    is_video = Path(link.partition('#')[0]).suffix in assets.VIDEO
    player = tag('video' if is_video else 'audio', src=link, controls=True, preload='metadata', playsinline=is_video,
                 aria_label=title)
    image = tag('div', tag('div', tag('img', src=picture, alt=f'{title}: log-mel spectrogram', loading='lazy'),
                           _marks(events, seconds), class_='picture', data_seconds=seconds, data_start=start),
                ruler(seconds)) if picture else None
    return tag('section', tag('h3', title), player, image, class_='take')


def _marks(events: list[dict[str, tp.Any]], seconds: float) -> Html:
    lines = []
    for event in events:
        if is_number(event.get('time')) and 0 <= event['time'] <= seconds:
            x = f'{100 * event["time"] / seconds:.2f}%'
            lines.append(tag('line', x1=x, x2=x, y1='0', y2='100%', class_='event'))
    return tag('svg', lines, tag('line', x1='0', x2='0', y1='0', y2='100%', class_='head'), aria_hidden='true')


def ruler(seconds: float) -> Html:
    """Time axis in seconds with at most nine ticks."""
    step = next((s for s in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 600) if seconds / s <= 8), seconds)
    ticks = []
    for i in range(int(seconds / step + 1e-6) + 1):
        x, anchor = 100 * i * step / seconds, 'start' if i == 0 else 'end' if i * step > 0.97 * seconds else 'middle'
        ticks += [tag('line', x1=f'{x:.2f}%', x2=f'{x:.2f}%', y1='0', y2='4'),
                  tag('text', f'{i * step:g}' + (' s' if i == 0 else ''), x=f'{x:.2f}%', y='17', text_anchor=anchor)]
    return tag('svg', ticks, class_='ruler', aria_hidden='true')
