"""What overrides change in a composed config, without a copy of the whole of it for each XP of a grid."""

import copy
import json
import os
import re
import typing as tp
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dora.hydra import _compare_config
from dora.utils import jsonable
from dora.xp import XP
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

Path = tuple[str, ...]
Delta = list[tuple[str, tp.Any]]
_PLAIN = re.compile(r'\w+(\.\w+)*')
_REFERENCE = re.compile(r'\$\{([^{}]*)\}')


class LazyXP(XP):
    """An XP whose config is made when it is first asked for: a grid of 1000 XPs looks at few of them.

    Args:
        composed (Composed): the config of the groups that it chooses.
        overrides (list): the others of its overrides.
    """
    def __init__(self, composed: 'Composed', overrides: list[str], **kwargs: tp.Any) -> None:
        self._composed, self._overrides = composed, overrides
        self._cfg: tp.Any = None
        super().__init__(cfg=None, **kwargs)

    @property
    def cfg(self) -> tp.Any:
        """The whole config."""
        if self._cfg is None:
            self._cfg = self._composed.with_overrides(self._overrides)
        return self._cfg

    @cfg.setter
    def cfg(self, value: tp.Any) -> None:
        self._cfg = value

    def part(self, key: str) -> tp.Any:
        """A key at the top of the config, to be read only."""
        changed = self._cfg is not None or self._composed.may_change(key, self._overrides)
        return (self.cfg if changed else self._composed.base).get(key)


def part(xp: XP, key: str) -> tp.Any:
    """A key at the top of an XP's config, to be read only; faster than `xp.cfg` when that is not needed."""
    return xp.part(key) if isinstance(xp, LazyXP) else xp.cfg.get(key)


@dataclass
class _Linked:
    """A value of the config that is taken from others; `names` None: it is not known from which."""
    path: Path
    names: set[str] | None


class Composed:
    """The config of some chosen groups, and what further overrides make of it.

    Args:
        base (DictConfig): the composed config; it is not changed.
    """

    def __init__(self, base: tp.Any) -> None:
        self.base = base
        self._scratch = copy.deepcopy(base)
        self._parser = OverridesParser.create()
        self._linked = [_Linked(path, _names_in(text)) for path, text in _linked_values(base, ())]

    def with_overrides(self, argv: list[str]) -> tp.Any:
        """A copy of the config with the overrides put on it by Hydra."""
        cfg = copy.deepcopy(self.base)
        ConfigLoaderImpl._apply_overrides_to_config(self._parser.parse_overrides(argv), cfg)
        return cfg

    def may_change(self, key: str, argv: list[str]) -> bool:
        """Whether overrides could change what is below a key at the top."""
        heads = {re.split('[.=]', argument.lstrip('+~'))[0] for argument in argv}
        return key in heads or any(link.path[0] == key for link in self._linked)

    def delta(self, argv: list[str]) -> Delta:
        """The values that the overrides change, as Dora's comparison of the whole configs gives them.

        Only what is overridden, and what is taken from there by `${...}`, is looked at. Additions, removals and keys
        in lists are compared as a whole.
        """
        paths = [tuple(argument.split('=', 1)[0].split('.')) for argument in argv]
        if not all(_PLAIN.fullmatch('.'.join(path)) and self._is_there(path) for path in paths):
            return _changes(self.base, self.with_overrides(argv), ())
        touched = _outermost([*paths, *self._reached(paths)])
        with self._overridden(paths, argv):
            return [change for path in touched for change in self._compare(path)]

    def _content(self, path: Path) -> dict[str, tp.Any]:
        """The nodes of the group that the last key of a path stands in; empty where there is no such group."""
        node = self._scratch
        for key in path[:-1]:
            node = _children(node).get(key)
        return _children(node)

    def _is_there(self, path: Path) -> bool:
        return path[-1] in self._content(path)

    @contextmanager
    def _overridden(self, paths: list[Path], argv: list[str]) -> tp.Iterator[None]:
        """Put the overrides on the scratch copy, and take them back."""
        overrides = self._parser.parse_overrides(argv)
        kept = []
        try:
            for path in paths:
                content = self._content(path)
                kept.append((content, path[-1], content[path[-1]]))
                content[path[-1]] = copy.deepcopy(content[path[-1]])
            ConfigLoaderImpl._apply_overrides_to_config(overrides, self._scratch)
            yield
        finally:
            for content, key, node in reversed(kept):
                content[key] = node

    def _reached(self, paths: list[Path]) -> list[Path]:
        """The values that are taken from those with the given paths, also by way of others."""
        found: list[Path] = []
        sources, waiting = list(paths), list(self._linked)
        while True:
            new = [link for link in waiting if link.names is None or _touch(link.names, sources)]
            if not new:
                return found
            sources = [link.path for link in new]
            waiting = [link for link in waiting if link not in new]
            found += sources

    def _compare(self, path: Path) -> Delta:
        before, after = self.base, self._scratch
        for key in path[:-1]:
            before, after = before[key], after[key]
        return _changes({path[-1]: before[path[-1]]}, {path[-1]: after[path[-1]]}, path[:-1])


def _changes(before: tp.Any, after: tp.Any, prefix: Path) -> Delta:
    # Dora keeps the path in a default argument: after an error in the middle of it, all later signatures of the
    # process would be wrong. Hence our own list.
    # Plain values: a list of the scratch copy would soon be another.
    return [('.'.join(found.path), jsonable(found.other_value))
            for found in _compare_config(before, after, list(prefix))]


def _children(node: tp.Any) -> dict[str, tp.Any]:
    """The nodes in a group of the config; none for a value, a list, null, or a group that is taken from elsewhere."""
    content = getattr(node, '__dict__', {}).get('_content')
    return content if isinstance(content, dict) else {}


def _linked_values(node: tp.Any, path: Path) -> tp.Iterator[tuple[Path, str]]:
    """All values with `${...}`, a list as one."""
    for key, child in _children(node).items():
        if _children(child):
            yield from _linked_values(child, (*path, str(key)))
        elif '${' in (text := str(child.__dict__.get('_content', child.__dict__.get('_val')))):
            yield (*path, str(key)), text


def _names_in(text: str) -> set[str] | None:
    """The keys that a text names in `${...}`; None where that takes more than reading (`${.x}`, `${oc.env:X}`)."""
    names = set(_REFERENCE.findall(text))
    plain = all(_PLAIN.fullmatch(name) for name in names) and len(_REFERENCE.findall(text)) == text.count('${')
    return names if plain else None


def _touch(names: set[str], paths: list[Path]) -> bool:
    keys = [f'{".".join(path)}.' for path in paths]
    return any(key.startswith(f'{name}.') or f'{name}.'.startswith(key) for name in names for key in keys)


def _outermost(paths: list[Path]) -> list[Path]:
    """Sorted as Dora goes through them, without those that lie in another one."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not kept or path[:len(kept[-1])] != kept[-1]:
            kept.append(path)
    return kept


def keep_argv(xp: XP) -> None:
    """Write the overrides of an XP to its folder: whole or not at all, but without waiting for the disk.

    A grid writes hundreds of them, and those that a lost machine takes with it are written again by the next run.
    """
    path, content = xp._argv_cache, json.dumps(xp.argv)
    xp.folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if path.read_text() == content:
            return
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(content)
    os.replace(temporary, path)
