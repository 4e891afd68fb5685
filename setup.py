"""Packaging: the package, and the top-level `config` and `grids` folders as `audiocraft._config` and `._grids`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'audiocraft' / '__init__.py').read_text(encoding='utf-8'))[1]

CORE = [
    # torchaudio ends at 2.11 and fits one torch only.
    'torch>=2.11,<2.12', 'torchaudio>=2.11,<2.12', 'numpy>=2.2,<3',
    # Their private names are patched in `dora_compat.py`: an upgrade is a decision, made with its tests.
    'dora-search==0.1.13', 'flashy==0.0.2', 'hydra-core>=1.3.7,<1.4', 'omegaconf>=2.3.1,<2.4', 'submitit>=1.5.3,<2',
    'tensordict>=0.14,<0.16', 'einops>=0.8,<0.9', 'soundfile>=0.13,<0.15', 'safetensors>=0.7,<1',
    'treetable>=0.2.5,<0.3',
]
EXTRAS = {
    'video': ['av>=17,<19'],
    # The image and text towers whose features MMAudio was trained on. Weights are never downloaded.
    'clip': ['open_clip_torch>=3.3,<4', 'torchvision>=0.26,<0.27'],
    'eval': ['hear21passt>=0.0.26,<0.1', 'transformers>=5.10,<6'],
    'plots': ['matplotlib>=3.10,<4'],
    'tensorboard': ['tensorboard>=2.20,<3'],
    'wandb': ['wandb>=0.25,<1'],
    'dev': ['pytest>=9,<10', 'pytest-xdist>=3.8,<4', 'pytest-timeout>=2.4,<3', 'ruff>=0.15,<1', 'mypy>=2,<3',
            # The tests compare with its reference implementations.
            'scipy>=1.15,<2'],
    'docs': ['pdoc>=16,<17'],
    'browser': ['playwright>=1.55,<2'],
}
EXTRAS['all'] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})

GRIDS = ['audiocraft._grids', *(f'audiocraft._grids.{name}' for name in find_packages('grids'))]

setup(
    name='audiocraft',
    version=VERSION,
    description='Train audio-generation models: codecs, video-to-audio, music and speech, in one framework.',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8') if (HERE / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='MIT',
    license_files=['LICENSE'],
    python_requires='>=3.11,<3.13',
    install_requires=CORE,
    extras_require=EXTRAS,
    # Dora installs a script of this name as well; ours does the same, and takes our package where it finds no other.
    entry_points={'console_scripts': ['dora = audiocraft.cli.forward:dora']},
    packages=[*find_packages(include=['audiocraft', 'audiocraft.*']), 'audiocraft._config', *GRIDS],
    package_dir={'audiocraft._config': 'config', 'audiocraft._grids': 'grids'},
    package_data={'audiocraft._config': [path.relative_to(HERE / 'config').as_posix()
                                         for path in sorted((HERE / 'config').rglob('*.yaml'))]},
)
