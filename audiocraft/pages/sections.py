"""The parts of the page of an XP, from what was read to markup."""

import shlex
import typing as tp

from .markup import Html, tag
from .meanings import CONTROLS, SKIPPED, Measure, follows, measures, words
from .results import Results, is_number
from .table import format_value


def header(results: Results, title: str, signature: str, best_metric: str | None) -> Html:
    """Title and the facts that tell one XP from another."""
    facts: list[tuple[str, tp.Any]] = [('XP', signature), ('epochs', len(results.history) or None),
                                       ('update', results.update or results.evaluated)]
    best = _best(results, best_metric)
    if best is not None:
        facts.append((f'best {words(str(best_metric))}', f'{best[1]:.4g} (epoch {best[0]})'))
    facts.append(('clips', len(results.clips) or None))
    return tag('header', tag('h1', title), tag('ul', [
        tag('li', f'{name} ', tag('b', value)) for name, value in facts if value is not None], class_='facts'))


def _best(results: Results, name: str | None) -> tuple[int, float] | None:
    """(epoch, value) of the lowest finite value of a metric of valid."""
    values = [(epoch, (entry.get('valid') or {}).get(name)) for epoch, entry in enumerate(results.history, 1)]
    finite = [(epoch, float(value)) for epoch, value in values if is_number(value)]
    return min(finite, key=lambda pair: pair[1]) if name and finite else None


def remarks(notes: list[str]) -> list[Html]:
    """What could not be shown, each once."""
    return [tag('p', note, class_='note', role='note') for note in dict.fromkeys(notes)]


def clips(results: Results, cards: list[Html], signature: str, limit: int) -> Html:
    if not cards:
        command = f'dora run -f {shlex.quote(signature)} execute_only=generate execute_inplace=true'
        return tag('section', tag('h2', 'Clips'), tag('p', 'There are no samples yet. This makes them:'),
                   tag('pre', tag('code', command)))
    more = len(results.clips) - limit
    legend = 'Log-mel spectrograms, 80 dB; thin white lines are the true events. Click a spectrogram to go there.'
    return tag('section', tag('h2', 'Clips'), tag('p', legend, class_='soft'), cards,
               tag('p', f'{more} more in generate/{results.update}/.', class_='soft') if more > 0 else None)


def evaluation(results: Results, curves: list[tuple[str, str]]) -> Html | None:
    """Curves over epochs, then the last results of evaluate with their controls."""
    if not curves and not results.metrics:
        return None
    parts: list[Html] = []
    if curves:
        parts += [tag('h2', 'Over epochs'), tag('div', tag('div', [
            tag('img', src=link, alt=text) for link, text in curves], class_='curves'), class_='card')]
    if results.metrics:
        parts.append(tag('h2', 'Evaluation' + (f' at update {results.evaluated}' if results.evaluated else '')))
        parts.append(_table(results.metrics))
        parts += [_verdict(*found) for found in follows(results.metrics)]
        parts.append(_controls(results.metrics))
    return tag('section', parts)


def _table(metrics: dict[str, tp.Any]) -> Html:
    head = tag('thead', tag('tr', tag('th', 'Measure'), tag('th', 'Value'), tag('th', 'Controls')))
    return tag('table', head, tag('tbody', [_row(measure) for measure in measures(metrics)]))


def _row(measure: Measure) -> Html:
    chips = [tag('span', tag('i', f'{words(name)} '), _value(value), class_='chip') for name, value in
             measure.controls.items()]
    return tag('tr', tag('td', tag('b', words(measure.name)), tag('div', measure.meaning), class_='name'),
               tag('td', _value(measure.value), class_='value'), tag('td', chips))


def _value(value: tp.Any) -> str:
    if value is None or value == SKIPPED:
        return 'not measured' + (' (weights missing)' if value else '')
    return f'{value:.3f}' if isinstance(value, float) and 0.001 <= abs(value) < 1000 else format_value(value)


def _verdict(control: str, verdict: str, of_picture: float, of_caption: float) -> Html:
    return tag('p', f'With {words(control)}s the sound follows: ', tag('b', verdict),
               f' (the kind is the picture\'s in {of_picture:.0%} of the clips, the caption\'s in {of_caption:.0%}).')


def _controls(metrics: dict[str, tp.Any]) -> Html | None:
    """What the controls are, those that are there."""
    used = [name for name in CONTROLS if any(name in key for key in metrics)]
    return tag('dl', [(tag('dt', words(name)), tag('dd', CONTROLS[name])) for name in used]) if used else None


def reproduce(results: Results, signature: str) -> Html:
    """Delta, commands, and the whole configuration, folded."""
    run = ' '.join(['dora run', *map(shlex.quote, results.overrides)])
    again = f'dora run -f {shlex.quote(signature)}'
    commands = [f'{run}    # this XP' if results.overrides else f'{again}    # this XP',
                f'{again} execute_only=generate execute_inplace=true    # its samples again',
                f'python -m audiocraft page {shlex.quote(signature)}    # this page again']
    config = tag('details', tag('summary', 'The whole configuration'), tag('pre', tag('code', results.config)))
    delta = tag('pre', tag('code', '\n'.join(results.overrides))) if results.overrides else tag(
        'p', 'None: the base configuration.')
    return tag('section', tag('h2', 'Configuration'),
               tag('p', 'What differs from the base, and makes the signature ', tag('code', signature), ':'), delta,
               tag('p', 'How to run it again:'), tag('pre', tag('code', '\n'.join(commands))),
               config if results.config else None)
