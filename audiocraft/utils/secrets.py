"""Passwords, keys and tokens do not belong in logs, checkpoints and pages."""
import functools
import os
import re
import typing as tp

MASK = '***'
_SHORTEST = 8  # characters of a variable's value; a shorter one is found in innocent words
# A variable may well be a secret with any of these in its name...
_VARIABLE = re.compile(r'token|secret|passw|api_?key|credential|access_key', re.IGNORECASE)
# ... while configs of language models are full of tokens that are none: max_tokens, tokenizer, pad_token_id=0.
_NAME = re.compile(r'(?P<token>token(?![a-z]))|secret|passw|api[_-]?key|credential|access[_-]?key', re.IGNORECASE)
_PAIR = re.compile(r"""
    (?P<head> (?<![\w.-]) (?P<name> [\w.-]+ ) (?: = | (?P<quote> ["'] ) \s* : \s* ) )
    (?P<value> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | [^\s"',;&\])}]+ )
""", re.VERBOSE)


@functools.cache
def _values() -> re.Pattern[str] | None:
    """What finds the values of the secret variables of this process; None without any."""
    found = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _SHORTEST}
    # The longest first: one may begin another.
    return re.compile('|'.join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None


def refresh() -> None:
    """Look at the environment again: it is read once."""
    _values.cache_clear()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_secret(name: str, value: str) -> bool:
    found = _NAME.search(name)
    if found is None or value in ('', 'null', 'None', 'true', 'false', 'True', 'False'):
        return False
    return not (found['token'] and _is_number(value))


def _hide_pair(match: re.Match[str]) -> str:
    value = match['value']
    quote = value[0] if value[0] in '"\'' else ''
    return f'{match["head"]}{quote}{MASK}{quote}' if _is_secret(match['name'], value.strip('"\'')) else match[0]


def hide(text: str) -> str:
    """Replace secrets in a text by `***`.

    Secrets are the values of environment variables with such a name (`HF_TOKEN`, `WANDB_API_KEY`, ...), and the values
    of `name=value` and `"name": "value"` in the text itself.
    """
    values = _values()
    if values is not None:
        text = values.sub(MASK, text)
    return _PAIR.sub(_hide_pair, text) if _NAME.search(text) else text


def hide_config(config: tp.Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """Return a copy of a plain config with secrets replaced by `***`: by the names of keys, at any depth, and in texts.

    What stands below such a key is hidden as a whole; numbers are kept where a name speaks of tokens.
    """
    return {key: _hide_value(str(key), value) for key, value in config.items()}


def _hide_value(name: str, value: tp.Any) -> tp.Any:
    if isinstance(value, tp.Mapping):
        return {key: _hide_value(name if _NAME.search(name) else str(key), part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide_value(name, part) for part in value]
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(name, str(value)):
        return MASK
    return hide(value) if isinstance(value, str) else value
