"""The parts of the page of an XP, from what was read to markup."""

import shlex
import typing as tp

from .markup import Html, tag
from .meanings import CONTROLS, Measure, follows, measures, words
from .results import Results, is_number
from .table import format_value

OPEN_CARDS = 8  # the others are folded, so that the scores are not a thousand lines down
MAX_NOTES = 6
TITLES = {'clips': 'Clips', 'curves': 'Over epochs', 'evaluation': 'Evaluation', 'configuration': 'Configuration'}


def header(results: Results, title: str, signature: str, best_metric: str | None, parts: tp.Sequence[str]) -> Html:
    """Title, the facts that tell one XP from another, and links to the `parts` of the page (keys of `TITLES`)."""
    facts: list[tuple[str, tp.Any]] = [('XP', signature), ('epochs', len(results.history) or None),
                                       ('update', results.update or results.evaluated)]
    best = _best(results, best_metric)
    if best is not None:
        facts.append((f'best {words(str(best_metric))}', f'{best[1]:.4g} (epoch {best[0]})'))
    facts.append(('clips', len(results.clips) or None))
    return tag('header', tag('h1', title), tag('ul', [
        tag('li', f'{name} ', tag('b', value)) for name, value in facts if value is not None], class_='facts'),
        tag('nav', [tag('a', TITLES[part], href=f'#{part}') for part in parts]))


def section(name: str, *body: tp.Any, title: str | None = None) -> Html:
    return tag('section', tag('h2', title or TITLES[name], id=name), *body)


def _best(results: Results, name: str | None) -> tuple[int, float] | None:
    """(epoch, value) of the lowest finite value of a metric of valid."""
    if name is None:
        return None
    values = [(epoch, (entry.get('valid') or {}).get(name)) for epoch, entry in enumerate(results.history, 1)]
    finite = [(epoch, float(value)) for epoch, value in values if is_number(value)]
    return min(finite, key=lambda pair: pair[1]) if finite else None


def remarks(notes: list[str]) -> list[Html]:
    """What could not be shown, each once; of very many the first ones and their number."""
    unique = list(dict.fromkeys(notes))
    if len(unique) > MAX_NOTES:
        unique = [*unique[:MAX_NOTES], f'... and {len(unique) - MAX_NOTES} more like this.']
    return [tag('p', note, class_='note', role='note') for note in unique]


def clips(results: Results, cards: list[Html], signature: str) -> Html:
    """The cards; the command that makes samples when there are none."""
    if not cards:
        command = f'dora run -f {shlex.quote(signature)} execute_only=generate execute_inplace=true'
        return section('clips', tag('p', 'There are no samples yet. This makes them:'),
                       tag('pre', tag('code', command)))
    legend = 'Log-mel spectrograms, 80 dB; thin white lines are the true events. Click a spectrogram to go there.'
    folded = tag('details', tag('summary', f'{len(cards) - OPEN_CARDS} more clips'), cards[OPEN_CARDS:])
    more = tag('p', f'{len(results.clips) - len(cards)} more in generate/{results.update}/.', class_='soft')
    return section('clips', tag('p', legend, class_='soft'), cards[:OPEN_CARDS],
                   folded if len(cards) > OPEN_CARDS else None, more if len(results.clips) > len(cards) else None)


def curves(pictures: list[tuple[str, str]]) -> Html | None:
    """Pictures of the history, (link, description)."""
    images = [tag('img', src=link, alt=text) for link, text in pictures]
    return section('curves', tag('div', tag('div', images, class_='curves'), class_='card')) if images else None


def evaluation(results: Results) -> Html | None:
    """The last results of evaluate, with their controls."""
    if not results.metrics:
        return None
    title = 'Evaluation' + (f' at update {results.evaluated}' if results.evaluated else '')
    verdicts = [_verdict(*found) for found in follows(results.metrics)]
    return section('evaluation', _table(results.metrics), verdicts, _controls(results.metrics), title=title)


def _table(metrics: dict[str, tp.Any]) -> Html:
    head = tag('thead', tag('tr', tag('th', 'Measure'), tag('th', 'Value'), tag('th', 'Controls')))
    return tag('table', head, tag('tbody', [_row(measure) for measure in measures(metrics)]))


def _row(measure: Measure) -> Html:
    chips = [tag('span', tag('i', f'{words(name)} '), _value(value), class_='chip') for name, value in
             measure.controls.items()]
    value = tag('td', measure.reason or _value(measure.value), class_='value' + ' none' * (measure.value is None))
    return tag('tr', tag('td', tag('b', words(measure.name)), tag('div', measure.meaning), class_='name'), value,
               tag('td', chips))


def _value(value: tp.Any) -> str:
    if value is None:
        return 'not measured'
    if isinstance(value, float) and value.is_integer() and abs(value) > 1:
        return f'{value:.0f}'  # a count
    plain = isinstance(value, float) and (value == 0 or 0.001 <= abs(value) < 1000)
    return f'{value:.3f}' if plain else format_value(value)


def _verdict(control: str, verdict: str, of_picture: float, of_caption: float) -> Html:
    return tag('p', f'With {words(control)}s the sound follows: ', tag('b', verdict),
               f" (the kind is the picture's in {of_picture:.0%} of the clips, the caption's in {of_caption:.0%}).")


def _controls(metrics: dict[str, tp.Any]) -> Html | None:
    """What the controls are, those that are there."""
    names = {name for measure in measures(metrics) for name in measure.controls}
    used = [name for name in CONTROLS if any(key.startswith(name) for key in names)]
    return tag('dl', [(tag('dt', words(name)), tag('dd', CONTROLS[name])) for name in used]) if used else None


def reproduce(results: Results, signature: str) -> Html:
    """Delta, commands, and the whole configuration, folded."""
    run = ' '.join(['dora run', *map(shlex.quote, results.overrides)])
    again = f'dora run -f {shlex.quote(signature)}'
    commands = [f'{run if results.overrides else again}    # this XP',
                f'{again} execute_only=generate execute_inplace=true    # its samples again',
                f'python -m audiocraft page {shlex.quote(signature)}    # this page again']
    config = tag('details', tag('summary', 'The whole configuration'), tag('pre', tag('code', results.config)))
    delta = tag('pre', tag('code', '\n'.join(results.overrides))) if results.overrides else tag(
        'p', 'None: the base configuration.')
    return section('configuration',
                   tag('p', 'What was changed of the base; what of it changes the result makes the signature ',
                       tag('code', signature), ':'), delta,
                   tag('p', 'How to run it again:'), tag('pre', tag('code', '\n'.join(commands))),
                   config if results.config else None)
