"""From config nodes to objects, and from configs to plain data.

`build` is the one way in which objects are made from a config: the node's `_target_` names a class, the other keys are
its arguments. Targets outside of a short list of packages are refused, and what comes out of a checkpoint
may name modules of this package only.
"""
import difflib
import functools
import importlib
import inspect
import typing as tp

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import Container, OmegaConf

from .errors import UserError

ABSENT = '(absent)'
_allowed = ['audiocraft.', 'torch.optim.', 'torch.nn.']
_SPECIAL = {'_target_', '_partial_', '_args_', '_recursive_', '_convert_'}


def to_plain(cfg: tp.Any) -> tp.Any:
    """Return a config as plain dicts, lists and scalars, interpolations resolved."""
    if isinstance(cfg, Container):
        return OmegaConf.to_container(cfg, resolve=True)
    if isinstance(cfg, tp.Mapping):
        return {key: to_plain(value) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return [to_plain(value) for value in cfg]
    return cfg


def to_yaml(cfg: tp.Any) -> str:
    """Return a config as yaml text, interpolations resolved, keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(cfg)), resolve=True)


def from_yaml(text: str) -> dict[str, tp.Any]:
    """Return the plain dict of a yaml text."""
    return tp.cast(dict, to_plain(OmegaConf.create(text)))


def flatten(tree: tp.Mapping[str, tp.Any], prefix: str = '') -> dict[str, tp.Any]:
    """Return `{dotted key: leaf}` of a nested dict; lists and empty dicts are leaves."""
    flat: dict[str, tp.Any] = {}
    for key, value in tree.items():
        name = f'{prefix}{key}'
        if isinstance(value, tp.Mapping) and value:
            flat.update(flatten(value, f'{name}.'))
        else:
            flat[name] = value
    return flat


def diff(old: tp.Mapping[str, tp.Any], new: tp.Mapping[str, tp.Any]) -> list[tuple[str, tp.Any, tp.Any]]:
    """Return `(dotted key, old, new)` of every leaf that differs, in order; a missing side is `ABSENT`."""
    before, after = flatten(to_plain(old)), flatten(to_plain(new))
    keys = [*before, *(key for key in after if key not in before)]
    pairs = [(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    return [(key, left, right) for key, left, right in pairs if left != right]


def suggest(word: str, choices: tp.Iterable[str]) -> str:
    """Return `did you mean "x"?` for the closest of the choices, or an empty text."""
    close = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ''


def allow_targets(prefixes: tp.Iterable[str]) -> None:
    """Let `build` make objects of further packages, e.g. `allow_targets(['my_project.'])`."""
    for prefix in prefixes:
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        if prefix not in _allowed:
            _allowed.append(prefix)


def _nodes(tree: tp.Any) -> tp.Iterator[dict[str, tp.Any]]:
    """Yield every dict with a `_target_` in a plain tree, the outer ones first."""
    if isinstance(tree, dict) and '_target_' in tree:
        yield tree
    if isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(value)


def _import_path(target: str) -> tp.Any:
    """Return the object with a dotted name: the longest part of it that is a module, then attributes."""
    parts = target.split('.')
    for length in range(len(parts) - 1, 0, -1):
        name = '.'.join(parts[:length])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f'{error.name}.')):
                continue
            raise UserError(f'Cannot load "{target}": the package "{error.name}" is missing.') from error
        for depth, part in enumerate(parts[length:], length):
            if not hasattr(found, part):
                raise UserError(f'Cannot find "{target}": no "{part}" in {".".join(parts[:depth])}. '
                                f'{suggest(part, vars(found))}'.rstrip())
            found = getattr(found, part)
        return found
    raise UserError(f'Cannot find "{target}": there is no module "{parts[0]}".')


def locate(target: tp.Any, prefixes: tp.Sequence[str] | None = None) -> tp.Any:
    """Return the class or function with a dotted name.

    Args:
        target (str): dotted name, e.g. `torch.optim.AdamW`.
        prefixes (list of str): packages that it may come from; the allow-list of `build` when not given.
    Raises:
        UserError: the name is outside of the packages, or there is no such object.
    """
    prefixes = _allowed if prefixes is None else prefixes
    listed = ', '.join(prefixes)
    if not isinstance(target, str) or not target.startswith(tuple(prefixes)):
        raise UserError(f'Refusing to build "{target}": only objects of {listed} may be built. '
                        'Add the package to the config key `allow_targets` if you trust it.')
    found = _import_path(target)
    # A name may begin well and, through the imports of a file, end elsewhere: where the object was defined counts.
    if not callable(found) or not f'{getattr(found, "__module__", None)}.'.startswith(tuple(prefixes)):
        raise UserError(f'Refusing to build "{target}": it is not a class or function of {listed}.')
    return found


def _check_arguments(node: dict[str, tp.Any], found: tp.Any, runtime: tp.Iterable[str] = ()) -> None:
    """Compare the keys of a node with the signature of its target."""
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return
    target, names = node['_target_'], {*(key for key in node if key not in _SPECIAL), *runtime}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in sorted(names - set(parameters)):
            raise UserError(f'{target} has no argument "{name}". {suggest(name, parameters)} '
                            f'It takes: {", ".join(parameters)}.')
    required = [p.name for p in parameters.values()
                if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [name for name in required if name not in names]
    if missing and not node.get('_partial_') and not node.get('_args_'):
        raise UserError(f'{target} needs the argument(s) {", ".join(missing)}, which the config does not give.')


def _plain_or_none(value: tp.Any) -> tuple[bool, tp.Any]:
    """Return (True, copy) of plain data and of objects that `build` made; (False, None) of anything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return True, value
    if isinstance(getattr(value, 'build_cfg', None), dict):
        return True, value.build_cfg
    if isinstance(value, (list, tuple)):
        parts = [_plain_or_none(part) for part in value]
        return all(ok for ok, _ in parts), [part for _, part in parts]
    if isinstance(value, tp.Mapping):
        items = {key: _plain_or_none(part) for key, part in value.items()}
        return all(ok for ok, _ in items.values()), {key: part for key, (_, part) in items.items()}
    return False, None


def _make(node: dict[str, tp.Any], runtime: dict[str, tp.Any], prefixes: tp.Sequence[str] | None = None) -> tp.Any:
    for inner in _nodes(node):
        _check_arguments(inner, locate(inner['_target_'], prefixes), runtime if inner is node else ())
    try:
        # Hydra makes the nested objects; the runtime arguments are added after it, since it would copy them.
        maker = instantiate({**node, '_partial_': True}, _convert_='all')
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise
    return functools.partial(maker, **runtime) if node.get('_partial_') else maker(**runtime)


def build(node: tp.Any, /, **runtime: tp.Any) -> tp.Any:
    """Build the object that a config node describes.

    Nested nodes with a `_target_` are built first; lists and dicts arrive as plain containers. The object remembers
    how it was made in `build_cfg` (the node and those runtime arguments that are plain data, or were themselves
    built), so that a checkpoint can make it again. Pass a list, not a tensor, for what must be remembered.

    Args:
        node (dict or DictConfig): `{'_target_': dotted name, **arguments}`.
        runtime: further arguments, which win over the node's.
    Raises:
        UserError: no `_target_`, a target outside of the allowed packages, a misspelled or missing argument.
    """
    plain = to_plain(node)
    if not isinstance(plain, dict) or '_target_' not in plain:
        raise UserError(f'A config node with a `_target_` was expected, got {plain!r}.')
    made = _make(plain, runtime)
    remembered = dict(plain)
    for name, value in runtime.items():
        ok, copied = _plain_or_none(value)
        if ok:
            remembered[name] = copied
    try:
        made.build_cfg = remembered
    except (AttributeError, TypeError):
        pass  # objects with slots, numbers, ...
    return made


def rebuild(build_cfg: tp.Mapping[str, tp.Any]) -> tp.Any:
    """Build again what `build` made, from the `build_cfg` that a checkpoint carries.

    A checkpoint may come from a stranger: only `torch.nn.Module` classes that this package defines are made.
    """
    from torch import nn  # here, so that commands which only read configs do not wait for it
    plain = to_plain(build_cfg)
    if not isinstance(plain, dict) or '_target_' not in plain:
        raise UserError('The checkpoint does not say how its model was built (no `_target_`).')
    for node in _nodes(plain):
        found = locate(node['_target_'], ['audiocraft.'])
        if not (inspect.isclass(found) and issubclass(found, nn.Module)):
            raise UserError(f'Refusing "{node["_target_"]}" from a checkpoint: it is not a module of audiocraft.')
    made = _make(plain, {}, ['audiocraft.'])
    made.build_cfg = plain
    return made
