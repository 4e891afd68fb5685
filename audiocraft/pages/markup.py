"""HTML as values: text is escaped unless it was made here.

A caption may hold `<script>` and an id may hold quotes, so escaping is not left to whoever writes a page:
`tag` escapes every string that is not already `Html`, and every attribute.
"""

import html
import typing as tp

Child = tp.Union['Html', str, int, float, None, tp.Iterable['Child']]
VOID = {'br', 'hr', 'img', 'link', 'meta', 'source'}


class Html(str):
    """Markup that needs no escaping any more."""


def join(*children: Child) -> Html:
    """Markup of the children, one after another; `None` is nothing, iterables are flattened."""
    return Html(''.join(_render(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: tp.Any) -> Html:
    """One element.

    Args:
        name (str): element name.
        children: text (escaped), numbers, `Html`, `None`, or iterables of those.
        attributes: `class_` is `class`, `data_x` is `data-x`; `None` and `False` are left out, `True` has no value.
    """
    text = ''.join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f'<{name}{text}>')
    return Html(f'<{name}{text}>{join(*children)}</{name}>')


def _render(child: Child) -> str:
    if child is None:
        return ''
    if isinstance(child, Html):
        return child
    if isinstance(child, (str, int, float)):
        return html.escape(str(child))
    return ''.join(_render(part) for part in child)


def _attribute(key: str, value: tp.Any) -> str:
    if value is None or value is False:
        return ''
    key = key.rstrip('_').replace('_', '-')
    return f' {key}' if value is True else f' {key}="{html.escape(str(value))}"'
