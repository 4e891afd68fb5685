"""What every discriminator looks like: several networks that look at the same audio in different ways."""

import typing as tp

import torch
from torch import nn

from ..modules.activations import build_activation
from ..utils.errors import UserError


class Judgement(tp.NamedTuple):
    """What a discriminator says of audio.

    Args:
        logits (list): one tensor per sub-discriminator, `[B, 1, ...]`; high where the audio sounds real.
        fmaps (list of lists): for each sub-discriminator the outputs of its layers, `[B, C, ...]`.
    """
    logits: list[torch.Tensor]
    fmaps: list[list[torch.Tensor]]


class SubDiscriminator(nn.Module):
    """A row of convolutions `convs`, an activation after each, and the convolution `conv_post` that gives the logits.

    The sub-classes set `convs` and `conv_post`.

    Args:
        activation (str): name of an activation of `torch.nn`.
        activation_params (dict or None): its arguments; None: a slope of 0.2 for `LeakyReLU`, its defaults for others.
        post_in_fmaps (bool): that the logits are one of the feature maps too.
    """
    convs: nn.ModuleList
    conv_post: nn.Module

    def __init__(self, *, activation: str, activation_params: dict[str, tp.Any] | None, post_in_fmaps: bool):
        super().__init__()
        if activation_params is None and activation == 'LeakyReLU':
            activation_params = {'negative_slope': 0.2}
        self.activation = build_activation(activation, activation_params, 1)
        self.post_in_fmaps = post_in_fmaps

    def view(self, x: torch.Tensor) -> torch.Tensor:
        """How this network looks at audio `[B, C, T]`: a tensor `[B, ...]`, which depends on none of its parameters."""
        raise NotImplementedError

    def forward(self, view: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits `[B, 1, ...]` and feature maps of what `view` returned."""
        fmaps = []
        for conv in self.convs:
            view = self.activation(conv(view))
            fmaps.append(view)
        logits = self.conv_post(view)
        return logits, [*fmaps, logits] if self.post_in_fmaps else fmaps


class Discriminator(nn.Module):
    """Several `SubDiscriminator`s.

    `prepare` and `from_prepared` are the two halves of `forward`. What is prepared (spectrograms, say) depends on no
    parameters, so that an update of the discriminator and the losses of the generator can share it.

    Args:
        discriminators: the networks.
        channels (int): C of the audio.
        min_samples (int): the shortest audio that all of them can look at, in samples.
    """

    def __init__(self, discriminators: tp.Iterable[SubDiscriminator], *, channels: int, min_samples: int):
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)
        self.channels, self.min_samples = channels, min_samples

    def prepare(self, x: torch.Tensor) -> list[torch.Tensor]:
        """How each sub-discriminator looks at audio `[B, C, T]`: one tensor `[B, ...]` for each.

        Raises:
            UserError: audio of other channels than the discriminator was built for, or too short.
        """
        self._check(x)
        return [tp.cast(SubDiscriminator, discriminator).view(x) for discriminator in self.discriminators]

    def _check(self, x: torch.Tensor) -> None:
        name = type(self).__name__
        if x.dim() != 3 or x.shape[1] != self.channels:
            raise UserError(f'{name} was built for audio [B, {self.channels}, T], got {list(x.shape)}: '
                            f'set its `in_channels` to the channels of the audio.')
        if x.shape[-1] < self.min_samples:
            raise UserError(f'{name} needs at least {self.min_samples} samples of audio, got {x.shape[-1]}: train on '
                            f'longer segments (dataset.segment_duration), or configure a discriminator that looks at '
                            f'shorter windows.')

    def from_prepared(self, prepared: tp.Sequence[torch.Tensor]) -> Judgement:
        """The judgement of what `prepare` returned."""
        pairs = [discriminator(view) for discriminator, view in zip(self.discriminators, prepared, strict=True)]
        return Judgement([logits for logits, _ in pairs], [fmaps for _, fmaps in pairs])

    def forward(self, x: torch.Tensor) -> Judgement:
        """The judgement of audio `[B, C, T]`."""
        return self.from_prepared(self.prepare(x))
