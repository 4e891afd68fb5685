"""Features of pictures and words by the two towers of CLIP (https://arxiv.org/abs/2103.00020), as MMAudio takes them.

The towers are those of open_clip (`pip install 'audiocraft[clip]'`); the weights that MMAudio was trained on are
DFN5B-CLIP ViT-H-14 (https://arxiv.org/abs/2309.17425). Nothing is downloaded: see `python -m audiocraft weights list`.
"""

import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from ..environment import resolve_path
from ..models.published.files import load_strict, read_state
from ..utils.checkpoint import State
from ..utils.errors import UserError
from .base import Extractor, Spec, dtype_named, weights_sha256
from .transforms import squash

# Of the red, green and blue of the pictures that CLIP was trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
VISUAL = 'visual.'


def _open_clip() -> tp.Any:
    try:
        import open_clip
    except ImportError as error:
        raise UserError("The towers of CLIP need open_clip: pip install 'audiocraft[clip]'") from error
    return open_clip


def _model_config(model: str | tp.Mapping[str, tp.Any]) -> dict[str, tp.Any]:
    """The config of a model of open_clip, by name or as it is; only those made of two transformers."""
    open_clip = _open_clip()
    if isinstance(model, str):
        if model not in open_clip.list_models():  # other names would be looked for on the network
            raise UserError(f'open_clip has no model "{model}"; `open_clip.list_models()` names those it has.')
        config = open_clip.get_model_config(model)
    else:
        config = dict(model)
    parts = {name: config.get(name) or {} for name in ('vision_cfg', 'text_cfg')}
    foreign = [f'{name}.{key}' for name, part in parts.items() for key in part
               if key in ('timm_model_name', 'hf_model_name', 'hf_tokenizer_name')]
    if foreign or 'custom_text' in config or not all(parts.values()):
        raise UserError(f'{model}: only CLIP models with a `vision_cfg` and a `text_cfg` of open_clip itself are '
                        f'supported ({", ".join(foreign) or "custom_text"} is not).')
    return config


def _tower(config: dict[str, tp.Any], visual: bool, dtype: torch.dtype) -> nn.Module:
    """Half of a CLIP on the meta device, under the names that its parameters have in the whole one."""
    with torch.device('meta'):
        clip = _open_clip().model.CLIP(**config)
    parts = [name for name, _ in clip.named_children()] + [name for name, _ in clip.named_parameters(recurse=False)]
    for name in parts:
        if (name == 'visual') != visual:
            delattr(clip, name)
    if clip.attn_mask is not None:  # no file has it
        ahead = torch.full(clip.attn_mask.shape, float('-inf'), dtype=dtype).triu(1)
        clip.register_buffer('attn_mask', None if visual else ahead, persistent=False)
    return clip


def _random(expected: State, seed: int = 0) -> State:
    """Weights of the right shapes, the same at each call: to try things out without the real ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2 and 'embedding' not in name:
            return torch.ones(shape) if name.endswith('weight') else torch.zeros(shape)
        return torch.randn(shape, generator=generator) * shape[1:].numel() ** -0.5
    return {name: draw(name, value.shape) for name, value in sorted(expected.items())}


class _Clip(Extractor):
    """One of the two towers, frozen.

    Args:
        model (str or dict): name of a model in open_clip, or its config (`embed_dim`, `vision_cfg`, `text_cfg`, ...).
        weights (str or None): state dict of that model, .safetensors or of torch; None for random ones.
        dtype (str): `float32` or `bfloat16`, in which the tower computes; features are float32.
        visual (bool): which tower.
    """

    def __init__(self, *, model: str | dict[str, tp.Any], weights: str | None, dtype: str, visual: bool):
        super().__init__()
        self.dtype = dtype_named(dtype)
        path = None if weights is None else resolve_path(weights)
        self.config = _model_config(model)
        self.clip: tp.Any = _tower(self.config, visual, self.dtype)
        state = _random(self.clip.state_dict()) if path is None else {
            name: value for key, value in read_state(path).items()
            if (name := key.removeprefix('module.')).startswith(VISUAL) == visual}
        # A copy only where the file has another dtype: else the pages of the file are the weights.
        load_strict(self.clip, {name: value.to(self.dtype) for name, value in state.items()}, path or 'random',
                    assign=True)
        self._sha256 = ''
        self.requires_grad_(False).eval()

    def weights_sha256(self) -> str:
        """The sha256 of the tower: gigabytes, which are hashed once."""
        self._sha256 = self._sha256 or weights_sha256(self.clip)
        return self._sha256


class ClipImage(_Clip):
    """What is to be seen in each frame, key `clip_features`: directions of unit length.

    Frames are squashed to `size` x `size`. The numbers of MMAudio come from 384, of which a network for 378 with
    patches of 14 uses the upper left 378.

    Args:
        model (str or dict): name of a model in open_clip, or its config.
        weights (str or None): path or `//pretrained/NAME` of its state dict; None for random ones.
        size (int): pixels, to which frames are squashed; as many patches as the model has must fit.
        fps (float): frames per second.
        batch (int): frames in one pass through the tower, which bounds the memory.
        dtype (str): `float32` or `bfloat16`, in which the tower computes.
    """
    consumes = 'frames'
    fps: float
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, model: str | dict[str, tp.Any] = 'ViT-H-14-378-quickgelu',
                 weights: str | None = '//pretrained/clip_dfn5b', size: int = 384, fps: float = 8., batch: int = 16,
                 dtype: str = 'float32'):
        super().__init__(model=model, weights=weights, dtype=dtype, visual=True)
        self.fps, self.side, self.batch = fps, size, batch
        vision = self.config['vision_cfg']
        pixels, patch = vision.get('image_size', 224), vision.get('patch_size', 16)
        if size // patch != pixels // patch:
            raise UserError(f'size {size}: this CLIP takes {pixels // patch} patches of {patch} pixels a side, '
                            f'expected {pixels} to {(pixels // patch + 1) * patch - 1}.')
        for name, values in (('mean', MEAN), ('std', STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def frames_needed(self, duration: float) -> int:
        """Frames of a clip; of a fraction none, as the lengths of MMAudio's sequences have it."""
        return int(self.fps * duration)

    def spec(self, duration: float) -> Spec:
        """One key, `clip_features`: `[T, embed_dim]`."""
        return {'clip_features': ((self.frames_needed(duration), self.config['embed_dim']), torch.float32)}

    def reduce(self, frames: torch.Tensor) -> torch.Tensor:
        """Squash frames to the size of the network."""
        return squash(frames, self.side)

    def prepare(self, item: torch.Tensor) -> torch.Tensor:
        """Frames uint8 `[T, 3, H, W]` of the size of the network."""
        return self.reduce(item)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Features `[N, embed_dim]` of images `[N, 3, size, size]` in [0, 1]."""
        images = ((images - self.mean) / self.std).to(self.dtype)
        with torch.autocast(images.device.type, enabled=False):  # the numbers of a store, whoever asks for them
            return F.normalize(self.clip.visual(images).float(), dim=-1)

    @torch.no_grad()
    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features `[B, T, embed_dim]` of frames uint8 `[B, T, 3, size, size]`.

        Each item goes through the tower on its own, so that its last bits do not depend on its neighbours.
        """
        parts = [[self.encode(part.to(self.mean.device).float() / 255) for part in item.split(self.batch)]
                 for item in batch]
        return {'clip_features': torch.stack([torch.cat(item) for item in parts])}


class ClipText(_Clip):
    """What a text says, key `text_features`: the hidden states of all its positions, each of unit length.

    They are taken behind the last norm and before the projection, also behind the end of the text.

    Args:
        model (str or dict): name of a model in open_clip, or its config.
        weights (str or None): path or `//pretrained/NAME` of its state dict; None for random ones.
        dtype (str): `float32` or `bfloat16`, in which the tower computes.
    """
    consumes = 'text'

    def __init__(self, *, model: str | dict[str, tp.Any] = 'ViT-H-14-378-quickgelu',
                 weights: str | None = '//pretrained/clip_dfn5b', dtype: str = 'float32'):
        super().__init__(model=model, weights=weights, dtype=dtype, visual=False)
        self.length, self.width = self.clip.positional_embedding.shape
        self.tokenizer = _open_clip().tokenizer.SimpleTokenizer(context_length=self.length)

    def spec(self, duration: float) -> Spec:
        """One key, `text_features`: `[tokens, width]`, of the real model `[77, 1024]`."""
        return {'text_features': ((self.length, self.width), torch.float32)}

    def prepare(self, item: str) -> torch.Tensor:
        """Tokens `[tokens]` of a text: start, words, end, zeros; of a longer one the end comes last."""
        return self.tokenizer(item)[0]

    @torch.no_grad()
    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states `[B, tokens, width]` of tokens `[B, tokens]`, as they leave the last norm."""
        clip = self.clip
        with torch.autocast(tokens.device.type, enabled=False):
            x = clip.token_embedding(tokens) + clip.positional_embedding
            return clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask)).float()

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features `[B, tokens, width]` of tokens `[B, tokens]`."""
        hidden = self.hidden(batch.to(self.clip.positional_embedding.device))
        return {'text_features': F.normalize(hidden, dim=-1)}
