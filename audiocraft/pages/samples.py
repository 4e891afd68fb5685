"""The page of one XP: listen, look, compare, and run it again.

`write_page(folder)` needs an XP folder on disk and nothing else; every file in it is optional:

    history.json                  [{stage: {metric: number}}, ...], one entry per epoch
    evaluate/<update>.json        {metric: number | null | text}, or {'metrics': {...}, ...}; the newest is shown.
                                  `CONTROL/NAME` and `NAME_SUFFIX` are shown beside `NAME` (see `meanings`)
    generate/<update>/            the newest that holds clips is shown. A clip is `<stem>.json` with `<stem>.wav`, and
                                  `<stem>.mp4` where there is a picture. Keys that are read, all optional: `id`,
                                  `caption` or `prompt`, `label` (of the generated sound: `Reconstruction`),
                                  `duration` (seconds), `start` (of the clip in the truth), `sample_rate`,
                                  `reference` (path of the truth, absolute or relative to the JSON, the XP folder or
                                  the current folder), `events` ([{'time': seconds, 'kind': text}]; else those
                                  beside the truth, see `data.samples.read_events`), `scores` ({name: number});
                                  other keys (seed, checkpoint, conditions, ...) are listed as they are
    .argv.json                    the overrides (else `.hydra/overrides.yaml`)
    checkpoints/<update>/config.yaml   the resolved configuration, newest (else `.hydra/config.yaml`)

It writes `<folder>/samples/index.html` and its files beside it. Links are relative, nothing is fetched from anywhere,
and the folder can be moved, zipped and sent. The page is written last and in one piece; files of the page before it
are removed after that.
"""

import hashlib
import json
import logging
import typing as tp
from pathlib import Path

from ..environment import xp_folder as folder_of_signature
from ..utils.errors import UserError
from ..utils.files import write_atomic
from ..utils.secrets import hide
from . import plots, sections
from .assets import remove_others
from .cards import Assets, card
from .markup import Html, tag
from .results import Results, read_results
from .theme import SCRIPT, STYLE, policy

logger = logging.getLogger(__name__)

MAX_CLIPS = 100


def write_page(xp_folder: str | Path, *, title: str | None = None, signature: str | None = None,
               delta: tp.Sequence[tp.Any] | None = None, best_metric: str | None = None) -> Path:
    """Write the page of an XP folder; see the top of this file for what is read.

    Args:
        xp_folder (str or Path): folder of the XP.
        title (str or None): by default the solver among the overrides, else the folder's name.
        signature (str or None): by default the folder's name.
        delta (list or None): overrides, as `key=value` or (key, value); by default those the folder remembers.
        best_metric (str or None): metric of `valid` whose lowest value is told at the top.
    Returns:
        Path: the page, `<xp_folder>/samples/index.html`.
    """
    folder = Path(xp_folder)
    results = read_results(folder)
    if delta is not None:
        results.overrides = [item if isinstance(item, str) else '='.join(map(str, item)) for item in delta]
    results.overrides = [hide(override) for override in results.overrides]
    signature = signature or folder.resolve().name
    title = title or next((x.partition('=')[2] for x in results.overrides if x.startswith('solver=')), signature)
    files = Assets(folder / 'samples')
    page = render(results, title, signature, best_metric, files)
    path = files.folder / 'index.html'
    write_atomic(path, page)
    remove_others(files.folder, files.kept | {path})
    return path


def render(results: Results, title: str, signature: str, best_metric: str | None, files: Assets) -> str:
    """The whole page as text, its pictures and media put beside it."""
    notes = list(results.notes)
    cards = [card(clip, results.update, files, notes) for clip in results.clips[:MAX_CLIPS]]
    curves = _curves(results, files)
    if not plots.available():
        notes.insert(0, f'No pictures: matplotlib is not installed ({plots.EXTRA}).')
    parts = {'clips': sections.clips(results, cards, signature), 'curves': sections.curves(curves),
             'evaluation': sections.evaluation(results), 'configuration': sections.reproduce(results, signature)}
    header = sections.header(results, title, signature, best_metric, [name for name, part in parts.items() if part])
    body = tag('body', header, sections.remarks(notes), parts.values(), tag('script', Html(SCRIPT)))
    return '<!DOCTYPE html>\n' + tag('html', _head(f'{title} · {signature}'), body, lang='en') + '\n'


def _head(title: str) -> Html:
    return tag('head', tag('meta', charset='utf-8'),
               tag('meta', http_equiv='Content-Security-Policy', content=policy()),
               tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
               tag('meta', name='generator', content='audiocraft'),
               tag('link', rel='icon', href='data:,'), tag('title', title), tag('style', Html(STYLE)))


def _curves(results: Results, files: Assets) -> list[tuple[str, str]]:
    """(link, description) of the pictures of the history."""
    if not plots.available():
        return []
    stamp = hashlib.sha256(json.dumps(results.history, sort_keys=True).encode()).hexdigest()[:8]
    found = []
    for name in plots.curves(results.history):
        path = files.path('curves', name, stamp, '.png')
        if path.exists() or plots.curves_png(results.history, path, panels=[name]):
            found.append((files.link(path), f'{plots.PANELS[name]}, over epochs'))
    return found


def find_folder(target: str) -> Path:
    """The XP folder that a signature, `//sig/SIG` or a path names; UserError when there is none."""
    path = Path(target)
    if not path.is_dir():
        try:
            path = folder_of_signature(target.removeprefix('//sig/').rstrip('/'))
        except UserError as error:
            raise UserError(f'{target} is neither a folder nor the signature of an XP: {error}') from None
    if not any((path / name).exists() for name in ('history.json', '.argv.json', '.hydra', 'generate', 'evaluate')):
        raise UserError(f'{path} does not look like the folder of an XP: it has none of history.json, .argv.json, '
                        '.hydra/, generate/, evaluate/')
    return path
