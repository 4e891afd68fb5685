"""The card of an exported model: what it is, how it was trained, how to load it, how good it is."""

import json
import typing as tp
from pathlib import Path

from torch import nn

from .. import __version__
from ..models.compression import CompressionModel
from ..models.encodec import EncodecModel
from ..utils.checkpoint import Checkpoint

_CARD = """# {name} {sig}

{parameters:.2f} M parameters, trained for {update} updates with audiocraft {version}.

{facts}

## How to load

{loading}

## Results

{results}

## Licence

To be written by whoever gives this model away: the terms of the weights, and of the data that they come from.
"""


def card(model: nn.Module, checkpoint: Checkpoint, folder: Path) -> str:
    """The text of the `README.md` beside an exported model.

    Args:
        model (nn.Module): what is exported.
        checkpoint (Checkpoint): where it comes from.
        folder (Path): of its XP.
    """
    sig, argv = checkpoint.state.get('sig') or '', folder / '.argv.json'
    overrides = ' '.join(json.loads(argv.read_text(encoding='utf-8'))) if argv.exists() else ''
    facts = [f'- XP: `{sig}`' + (f', `dora run {overrides}`' if overrides else ''), *_facts_of_model(model),
             *_facts_of_data(checkpoint.state.get('data_facts') or {})]
    return _CARD.format(
        name=type(model).__name__, sig=sig, parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        update=checkpoint.update, version=__version__, facts='\n'.join(facts), loading='\n'.join(_loading(model)),
        results='\n'.join(_results(folder, checkpoint)))


def _facts_of_model(model: nn.Module) -> list[str]:
    if not isinstance(model, CompressionModel):
        return []
    kind = (f'codes of {model.num_codebooks} codebooks with {model.codebook_size} entries each' if model.is_discrete
            else f'latents of {model.latent_dim} numbers')
    return [f'- Audio: {model.sample_rate} Hz, {model.channels} channel{"s" if model.channels > 1 else ""}',
            f'- Encoded: {kind}, {model.frame_rate:g} frames a second']


def _facts_of_data(facts: tp.Mapping[str, tp.Any]) -> list[str]:
    """The data of each stage by name, with how much of it there is."""
    lines = []
    for stage, sources in facts.items():
        named = []
        for name, fact in (sources or {}).items():
            fact = fact if isinstance(fact, dict) else {}
            amount = next((f' ({fact[key]} {key})' for key in ('rows', 'files', 'clips') if key in fact), '')
            named.append(f'{fact.get("name", name)}{amount}')
        lines.append(f'- Data of {stage}: {", ".join(named) or "unnamed"}')
    return lines


def _loading(model: nn.Module) -> list[str]:
    name = 'load_compression_model' if isinstance(model, CompressionModel) else 'load_model'
    lines = ['```python', f'from audiocraft.models.loaders import {name}', f"model = {name}('path/of/this/folder')",
             '```', '', 'To train on from it: `continue_from=path/of/this/folder`.']
    if isinstance(model, EncodecModel):
        lines.append('`compression_state_dict.bin` is the same model in the layout that AudioCraft reads.')
    return lines


def _results(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """The scores of the last evaluation, else of the last validation, up to this checkpoint."""
    epochs: list[dict[str, tp.Any]] = checkpoint.state.get('history') or []
    path = folder / 'history.json'
    if path.exists():  # it also has the stages that ran after the checkpoint was written
        epochs = json.loads(path.read_text(encoding='utf-8'))[:len(epochs)] or epochs
    for stage in ('evaluate', 'valid'):
        for number, stages in reversed(list(enumerate(epochs, start=1))):
            if stages.get(stage):
                rows = [f'| {name} | {value:.4g} |' for name, value in stages[stage].items()
                        if isinstance(value, (int, float)) and name != 'duration']
                return [f'`{stage}`, after epoch {number}:', '', '| metric | value |', '|---|---|', *rows]
    return ['None yet.']
