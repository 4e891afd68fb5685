"""LAION-CLAP through the library `transformers`: from a file with LAION's names, and from a folder."""

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.metrics import clap

pytestmark = pytest.mark.integ
TINY = {'text_config': {'num_hidden_layers': 1, 'hidden_size': 32, 'intermediate_size': 32, 'num_attention_heads': 2,
                        'vocab_size': 300},
        'audio_config': {'depths': [2, 2], 'num_attention_heads': [2, 2], 'patch_embeds_hidden_size': 16,
                         'hidden_size': 32, 'num_hidden_layers': 2}}
TO_LAION = [('text_model.', 'text_branch.'), ('audio_model.audio_encoder.', 'audio_branch.'),
            ('_projection.linear1.', '_projection.0.'), ('_projection.linear2.', '_projection.2.'),
            ('.batch_norm.', '.bn0.'), ('.layernorm_before.', '.norm1.'), ('.layernorm_after.', '.norm2.')]
OF_BLOCKS = [('.attention.self.query.', '.attn.qkv.'), ('.attention.output.dense.', '.attn.proj.'),
             ('.attention.self.', '.attn.'), ('.intermediate.dense.', '.mlp.fc1.'), ('.output.dense.', '.mlp.fc2.')]


def laion_names(state):
    """The weights under LAION's names, with what its files hold beside."""
    found = {}
    for name, value in state.items():
        if name.startswith('audio_model') and ('.self.key.' in name or '.self.value.' in name):
            continue
        if name.startswith('audio_model') and '.self.query.' in name:
            value = torch.cat([state[name.replace('query', part)] for part in ('query', 'key', 'value')])
        for new, old in (OF_BLOCKS if name.startswith('audio_model') else []):
            name = name.replace(new, old)
        for new, old in TO_LAION:
            name = name.replace(new, old)
        found[f'module.{name}'] = value
    return found | {'module.audio_branch.head.weight': torch.zeros(1),
                    'module.text_transform.sequential.0.weight': torch.zeros(1)}


@pytest.fixture
def folder(tmp_path):
    """Tiny random weights, in both forms, and a tokenizer of a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import ClapConfig, ClapModel
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(**TINY)).eval()
    torch.save({'epoch': 15, 'state_dict': laion_names(model.state_dict())}, tmp_path / 'laion.pt')
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(['a dog barks'], vocab_size=280, show_progress=False,
                                  special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'])
    tokenizer.save_model(str(tmp_path))
    return tmp_path, model


def test_laion_file(folder):
    path, model = folder
    network = clap.ClapLaion(weights=str(path / 'laion.pt'), options=TINY, device='cpu')
    assert network.missing == ''
    clips = [Clip('a', torch.randn(1, 16_000 * 8), 16_000, caption='a dog barks'),
             Clip('b', torch.randn(2, 48_000 * 11), 48_000)]
    heard, read = network(clips), network(clips, 'text')
    assert heard[0]['embedding'].shape == read[0]['embedding'].shape == (512,) and read[1] is None
    wavs = torch.stack([clap.fill(clap.mono(clip, clap.SAMPLE_RATE)) for clip in clips])
    with torch.no_grad():
        expected = clap._embedding(model.get_audio_features(input_features=clap.logmel(wavs)))
    assert torch.allclose(torch.stack([one['embedding'] for one in heard]), expected, atol=1e-6)


def test_front_end_is_that_of_transformers(folder):
    from transformers import ClapFeatureExtractor
    wav = clap.fill(torch.randn(48_000 * 8))
    theirs = ClapFeatureExtractor(truncation='rand_trunc', padding='repeatpad', frequency_min=50,
                                  frequency_max=14_000)(wav.numpy(), sampling_rate=48_000, return_tensors='np')
    assert (torch.from_numpy(theirs['input_features'])[0] - clap.logmel(wav[None])).abs().max() < 0.01  # dB


def test_without_the_words(folder):
    path, _ = folder
    (path / 'vocab.json').unlink()
    reason = clap.ClapLaion(weights=str(path / 'laion.pt'), options=TINY, device='cpu').missing
    assert reason.startswith('skipped_missing_weights') and 'vocab.json' in reason
