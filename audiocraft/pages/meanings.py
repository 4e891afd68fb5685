"""What the numbers mean, in one line each, and which number is a control of which.

Names that are not listed are shown as they are: a new metric needs no entry here. The shape of the names is that of
`evaluate`: `NAME` is a measure; `CONTROL/NAME` and `NAME_SUFFIX` are the same measure under a control;
`CONTROL/of_caption/NAME` scores what was made from another clip's caption against that other clip; `NAME_reason` says
why `NAME` is null. Controls of controls (`CONTROL/NAME_SUFFIX`) stay in the JSON.
"""

import dataclasses
import re
import typing as tp

from .results import is_number

# A name that goes on after `_` (fd_embedded) has the meaning of its beginning.
MEANINGS = {
    'loss': 'The training loss on the clips of evaluate.',
    'flow_loss': 'Squared error of the predicted velocity; compare between models on the same latents only.',
    'onset_f1': 'Do the sounds start when the strikes happen? F1 of onsets matched one to one within 50 ms; 1 is best.',
    'onset_precision': 'Share of the generated onsets that are true ones.',
    'onset_recall': 'Share of the true onsets that were generated.',
    'kind_accuracy': 'Does it sound like the right kind of object? Share of clips that a classifier, fitted on real '
                     'training audio, puts in the right kind.',
    'fd': 'Fréchet distance of generated to true sounds in the features of an extractor; 0 is the same distribution.',
    'kid': 'Kernel distance of generated to true sounds in the features of an extractor; 0 is the same distribution.',
    'kl': 'Kullback-Leibler divergence between what a classifier hears in the truth and in the generated; 0 is equal.',
    'isc': 'Inception score: confident and varied classes; higher is better, on one classifier only.',
    'FD-VGG': 'Fréchet distance of generated to true sounds on VGGish; lower is better.',
    'FD-PANN': 'Fréchet distance of generated to true sounds on PANNs; lower is better.',
    'FD-PASST': 'Fréchet distance of generated to true sounds on PaSST; lower is better.',
    'KL-PANNS-softmax': 'Divergence between what PANNs hears in the truth and in the generated; lower is better.',
    'KL-PASST-softmax': 'Divergence between what PaSST hears in the truth and in the generated; lower is better.',
    'ISC-PANNS-mean': 'Inception score on PANNs: confident and varied classes; higher is better.',
    'ISC-PASST-mean': 'Inception score on PaSST: confident and varied classes; higher is better.',
    'IB-Score': 'Do sound and pictures mean the same? Cosine of their ImageBind embeddings; higher is better.',
    'DeSync': 'Seconds by which sound and pictures are apart, as Synchformer hears and sees it; lower is better.',
    'LAION-CLAP-Score': 'Does it sound like the words? Cosine of CLAP embeddings; higher is better.',
    'MS-CLAP-Score': 'Does it sound like the words? Cosine of CLAP embeddings; higher is better.',
    'mel_distance': 'Mean absolute difference of log-mel spectrograms; 0 is identical.',
    'log_spectral_distance': 'Distance of the spectra of reconstruction and truth, in dB; 0 is identical.',
    'stft_distance': 'Distance of magnitude spectrograms over windows of several lengths: relative error, and '
                     'difference of logs; 0 is identical.',
    'chroma_cosine': 'Does it have the harmony of the truth? Cosine of the twelve pitch classes, frame by frame; 1 is '
                     'best.',
    'relative_volume': 'Volume of the error relative to the truth in mel bands, low to high, in dB; lower is better.',
    'visqol': 'What listeners would say, from 1 to 5, as ViSQOL estimates it; higher is better.',
    'codebook_use': 'Share of the entries of the codebooks that occur at all, level by level; 1 is all of them.',
    'codebook_perplexity': 'How many entries the codebooks would have with the same variety, were all equally '
                           'frequent; higher is better.',
    'bitrate': 'Kilobits per second of the codes; lower is cheaper. With entropy coding: what is really in them.',
    'l1': 'Mean absolute error of the reconstruction, in the space of the loss.',
    'l2': 'Mean squared error of the reconstruction, in the space of the loss.',
    'msspec': 'Distance of mel spectrograms over windows of several lengths, a part of the loss.',
    'sisnr': 'Minus the signal to noise ratio of segments, in dB; lower is better.',
    'adv': 'How well a discriminator tells the reconstruction from truth: part of the loss, no measure of quality.',
    'feat': 'Distance of reconstruction and truth in the layers of a discriminator.',
    'penalty': 'Cost of the bottleneck in the loss: keeps latents near a normal distribution, or near their codes.',
    'latent_std': 'Spread of the latents; about 1 is easiest for the models that follow.',
    'posterior_std': 'What the encoder says of its own uncertainty, on average.',
    'si_snr': 'Scale-invariant signal to noise ratio of the reconstruction, in dB; higher is better. Median '
              'and worst (5 % are below) of the clips beside it.',
}
CONTROLS = {
    'test': 'The final average of the weights on the test clips, after the last epoch.',
    'ceiling': 'The truth through the compression model: what the codec and the detector allow at best.',
    'untrained': 'A model of the same shape before any training: what comes from nothing.',
    'truth': 'The true sounds themselves, measured in the same way.',
    'wrong_video': 'Scored against other videos: what chance gives.',
    'frozen': 'The model saw a still picture: what does not come from motion.',
    'shifted': 'The model saw the video late: the sound should move with it, so this should fall.',
    'neutral_caption': 'The caption did not name the object: what comes from the picture.',
    'swapped_caption': 'The caption was that of another clip.',
}
REASON = '_reason'
DETAIL = re.compile(r'_reason$|_weights$|loss_t\d\d$')  # for the files, not for the page


@dataclasses.dataclass
class Measure:
    """One measure, its controls by name, and what it means."""
    name: str
    value: tp.Any
    meaning: str
    reason: str = ''  # why there is no value
    controls: dict[str, tp.Any] = dataclasses.field(default_factory=dict)


def measures(metrics: dict[str, tp.Any]) -> list[Measure]:
    """Group the results of `evaluate`: each measure with its controls, in the order they came."""
    reasons = {name.removesuffix(REASON): value for name, value in metrics.items() if name.endswith(REASON)}
    metrics = {name: value for name, value in metrics.items() if not DETAIL.search(name)}
    found: dict[str, Measure] = {}
    for name, value in metrics.items():
        if _base(name, metrics) == name:
            found[name] = Measure(name, value, _meaning(name), str(reasons.get(name, '')))
    for name, value in metrics.items():
        base = _base(name, metrics)
        head, _, tail = name.rpartition('/')
        if base != name and not (head and tail != base):
            found[base].controls[head or tail.removeprefix(f'{base}_')] = value
    for measure in found.values():
        measure.controls = dict(sorted(measure.controls.items(), key=lambda item: _rank(item[0])))
    return list(found.values())


def follows(metrics: dict[str, tp.Any]) -> list[tuple[str, str, float, float]]:
    """Which of picture and caption the sound follows when they disagree.

    Returns:
        list of (control, 'the picture' | 'the caption' | 'neither more than the other', score of the picture,
        score of the caption).
    """
    found = []
    for name, of_caption in metrics.items():
        control, _, base = name.partition('/of_caption/')
        of_picture = metrics.get(f'{control}/{base}')
        if _base(base, metrics) == base and base.startswith('kind') and is_number(of_caption) and is_number(of_picture):
            gap = of_picture - of_caption
            verdict = 'neither more than the other' if abs(gap) < 0.05 else 'the picture' if gap > 0 else 'the caption'
            found.append((control, verdict, float(of_picture), float(of_caption)))
    return found


def _rank(control: str) -> int:
    """Controls in the order of `CONTROLS`, others after them."""
    return next((i for i, name in enumerate(CONTROLS) if control.startswith(name)), len(CONTROLS))


def words(name: str) -> str:
    """A name for people: `swapped_caption/of_caption` is `swapped caption, of caption`."""
    return name.replace('/', ', ').replace('_', ' ')


def _base(name: str, metrics: dict[str, tp.Any]) -> str:
    """The measure that `name` is a control of, or `name`; a control whose measure is missing stands for itself.

    What has a meaning of its own is never one: `mel_distance` is not a control of a loss `mel`.
    """
    tail = name.rpartition('/')[2]
    if tail in metrics and tail != name:
        name = tail
    if name in MEANINGS:
        return name
    for other in metrics:
        if '/' not in other and name != other and name.startswith(f'{other}_'):
            return other
    return name


def _meaning(name: str) -> str:
    keys = [key for key in MEANINGS if name == key or name.startswith(f'{key}_')]
    return MEANINGS[max(keys, key=len)] if keys else ''
