"""An XP folder with three clips that no solver made: `python tests/pages/fake_xp.py FOLDER` writes it and its page.

The media are real (h264 and aac in mp4, wav), so the page can be looked at in a browser.
"""

import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

RATE, FPS, SECONDS = 16000, 25, 2.
DELTA = ['solver=mmaudio/debug', 'optim.lr=0.0003', 'dset=example']
METRICS = {
    'flow_loss': 0.412, 'onset_f1': 0.934, 'onset_f1_wrong_video': 0.118, 'kind_accuracy': 0.969,
    'kind_accuracy_truth': 0.99, 'fd_embedded': 3.27, 'fd_embedded_n': 32., 'kl_embedded': None,
    'kl_embedded_reason': 'no generated clip has a true one', 'ceiling/onset_f1': 0.971, 'ceiling/kind_accuracy': 1.0,
    'frozen/onset_f1': 0.092, 'frozen/onset_f1_wrong_video': 0.1, 'shifted/onset_f1': 0.071,
    'neutral_caption/kind_accuracy': 0.96, 'swapped_caption/onset_f1': 0.93, 'swapped_caption/kind_accuracy': 0.94,
    'swapped_caption/of_caption/kind_accuracy': 0.03, 'swapped_caption/kind_accuracy_truth': 0.99,
    'swapped_caption/of_caption/kind_accuracy_truth': 0.99,
}
CLIPS = [('Clip0001', 'a red square strikes wood', [0.4, 1.1, 1.52]),
         ('../odd "id" é', 'a caption with <script>document.title = "owned"</script> & markup', [0.7, 1.6]),
         ('Clip0003', 'a blue disc hits metal, twice, in a noisy room', [0.25, 1.4])]


def sound(times: list[float], pitch: float, seed: int) -> np.ndarray:
    """Decaying tones at `times` over a little noise, `[T]`."""
    t = np.arange(int(RATE * SECONDS)) / RATE
    wav = 0.003 * np.random.default_rng(seed).standard_normal(len(t))
    for time in times:
        after = np.clip(t - time, 0, None)
        tone = sum(np.sin(2 * math.pi * pitch * k * after) / k for k in (1, 2.76, 5.4))
        wav += 0.3 * (t >= time) * np.exp(-after * 14) * tone
    return wav.astype(np.float32)


def frames(times: list[float]) -> list[np.ndarray]:
    """A square that falls to the ground at each of `times`."""
    pictures = []
    for i in range(int(SECONDS * FPS)):
        away = min((abs(i / FPS - time) for time in times), default=1.)
        y = 70 - int(60 * min(1., away * 4))
        picture = np.full((120, 160, 3), (225, 222, 214), np.uint8)
        picture[98:] = (120, 110, 100)
        picture[y:y + 28, 64:92] = (190, 60, 50)
        pictures.append(picture)
    return pictures


def write_mp4(path: Path, pictures: list[np.ndarray], wav: np.ndarray) -> None:
    with av.open(str(path), 'w') as container:
        video = container.add_stream('libx264', rate=FPS, options={'preset': 'ultrafast'})
        video.width, video.height, video.pix_fmt = 160, 120, 'yuv420p'
        audio = container.add_stream('aac', rate=RATE, layout='mono')
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(video.encode())
        chunk = av.AudioFrame.from_ndarray(wav[None], format='fltp', layout='mono')
        chunk.sample_rate, chunk.time_base, chunk.pts = RATE, Fraction(1, RATE), 0
        container.mux(audio.encode(chunk))
        container.mux(audio.encode())


def make(folder: Path) -> Path:
    """Write the XP at `folder / 'xps' / '1a2b3c4d'` and the truth at `folder / 'media'`; returns the XP."""
    xp, media = folder / 'xps' / '1a2b3c4d', folder / 'media'
    made = xp / 'generate' / '4000'
    for path in (made, media, xp / 'evaluate', xp / 'checkpoints' / '4000'):
        path.mkdir(parents=True)
    (xp / '.argv.json').write_text(json.dumps(DELTA))
    (xp / 'checkpoints' / '4000' / 'config.yaml').write_text('seed: 1\nwandb:\n  api_key: hush\noptim:\n  lr: 0.0003\n')
    (xp / 'evaluate' / '4000.json').write_text(json.dumps(METRICS))
    history: list[dict] = []
    for epoch in range(1, 9):
        entry = {'train': {'loss': 0.4 + 1.1 / epoch, 'lr': 3e-4}, 'valid': {'loss': 0.45 + 1.0 / epoch}}
        if epoch % 2 == 0:
            entry['evaluate'] = {'onset_f1': 0.95 - 1.2 / epoch, 'kind_accuracy': 1 - 0.9 / epoch,
                                 'flow_loss': 0.4 + 1 / epoch, 'fd_embedded': 3 + 30 / epoch ** 2,
                                 'ceiling/onset_f1': 0.97}
        history.append(entry)
    (xp / 'history.json').write_text(json.dumps(history))
    for i, (name, caption, times) in enumerate(CLIPS):
        write_clip(made, media, i, name, caption, times)
    return xp


def write_clip(made: Path, media: Path, i: int, name: str, caption: str, times: list[float]) -> None:
    truth = media / f'truth{i}.mp4'
    write_mp4(truth, frames(times), sound(times, 320 * (i + 1), i))
    wav = sound([time + 0.015 for time in times], 325 * (i + 1), 10 + i)
    soundfile.write(made / f'{i}.wav', wav, RATE)
    if i < 2:  # the third is sound alone
        write_mp4(made / f'{i}.mp4', frames(times), wav)
    (made / f'{i}.json').write_text(json.dumps({
        'id': name, 'caption': caption, 'seed': 1234 + i, 'checkpoint': 'checkpoints/4000 (best)', 'update': 4000,
        'sample_rate': RATE, 'duration': SECONDS, 'reference': str(truth), 'scores': {'onset_f1': 0.9 + 0.05 * i},
        'events': [{'time': time, 'kind': 'wood'} for time in times], 'conditions': {'caption': caption}}))


if __name__ == '__main__':
    from audiocraft.pages.samples import write_page
    print(write_page(make(Path(sys.argv[1])), best_metric='loss'))
