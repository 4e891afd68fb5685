"""Convert weights of others (.pth, .pt, .bin) to safetensors, once and without running code from them.

Example: `python -m audiocraft import_weights ext_weights/v1-16.pth`, which `//pretrained/mmaudio/vae_16k` then means.
"""

import argparse
import typing as tp
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='PATH_OR_NAME', help='the file, or its name in `weights list`')
    parser.add_argument('--name', help='what //pretrained/NAME will find (by default the one whose file is called so)')
    parser.add_argument('--out', metavar='FOLDER', help='where to put it (by default $AUDIOCRAFT_WEIGHTS/NAME)')
    parser.add_argument('--force', action='store_true', help='replace what is there')
    return parser


def main(args: argparse.Namespace) -> int:
    """Convert one file."""
    from .. import weights
    from ..utils.errors import UserError
    source, name = find_source(args.source, args.name)
    if args.out is None and name is None:
        raise UserError(f'{source.name} is no file of the registry (python -m audiocraft weights list): say with '
                        '--name what it is, or with --out where to put it.')
    folder = Path(args.out).expanduser() if args.out is not None else weights.weights_folder() / str(name)
    target = folder / weights.CONVERTED
    if target.exists() and not args.force:
        raise UserError(f'There is {target} already: --force replaces it.')
    record = convert(source, target, name)
    print(f'{source}: sha256 {record["source_sha256"]}\n{target}: sha256 {record["sha256"]}\n'
          f'{record["tensors"]} tensors, licence: {record["licence"]}')
    if args.out is None:
        print(f'It is //pretrained/{name} now.')
    return 0


def find_source(given: str, name: str | None) -> tuple[Path, str | None]:
    """The file to convert, and the name that it will have."""
    from .. import weights
    from ..utils.errors import UserError
    if name is not None and not weights.is_name(name):
        raise UserError(f'--name {name}: words of letters, digits and "_.-" were expected, with "/" between them.')
    path = Path(given).expanduser()
    if path.is_dir() and not any(entry.name == given for entry in weights.entries()):
        raise UserError(f'{given} is a folder; a file of weights was expected.')
    if path.is_file() and not path.stat().st_size:
        raise UserError(f'{given} is empty, 0 bytes: get it again.')
    if path.is_file():
        known = weights.entry_of_file(path.name)
        return path, name or (known.name if known else None)
    if not any(entry.name == given for entry in weights.entries()):
        raise UserError(f'{given}: there is no such file, and no weights of this name in the registry.')
    found = weights.find_original(given)
    if found is None:
        weights.find(given)  # says where it was looked for, if it was not converted before
        raise UserError(f'"{given}" was converted already, and what it was made of is not there any more.')
    return found, name or given


def convert(source: Path, target: Path, name: str | None) -> dict[str, tp.Any]:
    """Write the tensors of a file as safetensors, with a record of where they come from, and return that.

    Raises:
        UserError: the file cannot be read, holds pickled objects or no weights, or lacks a file that belongs to it.
    """
    import json

    from .. import weights
    from ..utils.files import sha256_of, write_atomic
    entry = next((entry for entry in weights.entries() if entry.name == name), None)
    tensors = read(source)
    check_plain(tensors, source)
    for other in entry.beside if entry else ():
        copy_beside(source, target, other)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(tensors, target)
    difference = weights.difference(source, entry) if entry else None
    record = {'name': name, 'source': source.name, 'source_sha256': sha256_of(source), 'sha256': sha256_of(target),
              'tensors': len(tensors), 'licence': entry.licence if entry else 'unknown',
              'published': entry.source if entry else None, 'is_published': difference is None if entry else None}
    if difference is not None:
        print(f'Note: {source} is not the file that was published as "{name}": {difference}.')
    write_atomic(target.with_name(weights.RECORD), json.dumps(record, indent=2) + '\n')
    return record


def read(source: Path) -> dict[str, tp.Any]:
    """The tensors of a file by name; a file of one tensor alone gives `tensor`."""
    import torch

    from ..models.published.files import read_file, state_in
    from ..utils.errors import UserError
    content = read_file(source)
    if isinstance(content, torch.Tensor):
        return {'tensor': content}
    if isinstance(content, dict) and 'xp.cfg' in content:
        raise UserError(f'{source} is an export of AudioCraft, which holds how to build the model as well: it is read '
                        'as it is (load_compression_model, continue_from).')
    tensors, others = state_in(content, source)
    if others:
        print(f'Left out, since they are no weights: {", ".join(others)}.')
    return tensors


def check_plain(tensors: dict[str, tp.Any], source: Path) -> None:
    """Refuse tensors that safetensors cannot hold."""
    import torch

    from ..utils.errors import UserError
    other = [name for name, tensor in tensors.items()
             if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta]
    if other:
        raise UserError(f'{source}: "{other[0]}" ({len(other)} such) is quantized, sparse or without values, which '
                        'safetensors does not hold: save it as a plain tensor first.')


def write(tensors: dict[str, tp.Any], target: Path) -> None:
    """Write tensors, each for itself: the file can be read by anything that reads safetensors."""
    import os
    import uuid

    import safetensors.torch

    from ..utils.errors import UserError
    from ..utils.files import fsync_dir, fsync_file, open_to_others
    seen: set[int] = set()
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen
        tensors[name] = tensor.detach().contiguous().clone() if shared else tensor.detach().contiguous()
        seen.add(tensors[name].data_ptr())
    part = target.with_name(f'.{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        try:
            safetensors.torch.save_file(tensors, str(part), metadata={'format': 'pt'})
        except safetensors.SafetensorError as error:
            raise UserError(f'cannot write {target}: {error}') from error
        open_to_others(part)
        fsync_file(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    fsync_dir(target.parent)


def copy_beside(source: Path, target: Path, name: str) -> None:
    """Copy a small file that the weights cannot be read without."""
    from ..utils.errors import UserError
    from ..utils.files import write_atomic
    there = source.with_name(name)
    if not there.is_file():
        raise UserError(f'{source}: {name} was expected beside it.')
    write_atomic(target.with_name(name), there.read_bytes())
