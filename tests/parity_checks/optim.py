"""Checks of learning-rate schedules, post-hoc averages, and whole training steps of MMAudio."""

import collections
import contextlib
import re
import tempfile
import typing as tp
from unittest import mock

import torch
from omegaconf import OmegaConf
from torch import nn

from audiocraft import optim
from audiocraft.environment import CONFIG_ROOT
from audiocraft.flow import path
from audiocraft.optim.posthoc_ema import beta_of, combination, gamma_of
from audiocraft.utils.config import build

from .base import Fixture, Report


def _number(pattern: str, note: str, default: float) -> float:
    found = re.search(pattern, note)
    return float(found[1]) if found else default


def check_lr_schedule_default(fixture: Fixture, report: Report) -> None:
    """The rate at some updates; what the note says of the schedule goes over the project's own `schedule=steps`."""
    expected, note = fixture.json['lr_used_at_iteration'], fixture.json.get('note', '')
    node = OmegaConf.to_container(OmegaConf.load(CONFIG_ROOT / 'schedule' / 'steps.yaml'))
    node['warmup'] = int(_number(r'warmup (\d+)', note, node['warmup']))
    node['gamma'] = _number(r'\] x([\d.e-]+)', note, node['gamma'])
    if found := re.search(r'MultiStep \[([^\]]*)\]', note):
        node['milestones'] = [int(float(text.strip().replace('k', 'e3'))) for text in found[1].split(',')]
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=_number(r'lr ([\d.e-]+)', note, max(expected.values())))
    schedule = optim.build_lr_scheduler(optimizer, node, 1 + max(map(int, expected)))
    for update, lr in expected.items():
        schedule.load_state_dict({'update': int(update), 'scale': 1.})
        report.close(f'update {update}', optimizer.param_groups[0]['lr'], lr)


class _Weight(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def _named(name: str, **patterns: str) -> dict[str, float]:
    """Numbers in a dotted name such as `sigma0.05.step_size_correction1`."""
    return {key: float(found[1]) for key, pattern in patterns.items() if (found := re.search(pattern, name))}


def check_posthoc_ema(fixture: Fixture, report: Report) -> None:
    """gamma, beta, the running averages, the snapshots, and what is synthesized from them."""
    for sigma, gamma in fixture.json['sigma_rel_to_gamma'].items():
        report.close(f'gamma({sigma})', gamma_of(float(sigma)), gamma)
    for name, table in fixture.json['beta'].items():
        given = _named(name, sigma=r'sigma([\d.]+?)\.step', correction=r'correction(\d)', every=r'every(\d+)')
        for step, beta in table.items():
            mine = beta_of(int(step), gamma_of(given['sigma']), int(given['every']), bool(given['correction']))
            report.close(f'beta.{name}({step})', mine, beta)
    for correction in (False, True):
        _check_history(fixture, report, correction)


def _check_history(fixture: Fixture, report: Report, correction: bool) -> None:
    key = f'ema_hist.ssc{int(correction)}'
    trajectory, model = fixture['traj'], _Weight(fixture['traj'].shape[1])
    with tempfile.TemporaryDirectory() as folder:
        every = int(fixture.metadata['checkpoint_every'])
        ema = optim.PostHocEMA({'model': model}, sigma_rels=fixture.metadata['sigmas'], folder=folder,
                               snapshot_every=every, step_size_correction=correction)
        history = []
        for weights in trajectory:
            model.w.data.copy_(weights)
            ema.step()
            history.append(torch.stack([states['model']['w'] for states in ema.state_dict()['averages']]))
        report.close(key, torch.stack(history), fixture[key])
        if correction:
            _check_synthesis(fixture, report, ema)


def _check_synthesis(fixture: Fixture, report: Report, ema: optim.PostHocEMA) -> None:
    files = [f'{snapshot["index"]}.{snapshot["step"]}.pt' for snapshot in ema.snapshots]
    report.equal('snapshots', sorted(files), sorted(fixture.json['files']))
    shapes = {key: list(tensor.shape) for key, tensor in ema.averaged()['model'].items()}
    for part in ('ckpt_keys', 'posthoc_state_dict_keys'):
        for name, recorded in fixture.json[part].items():
            if 'ema_model.' in name:
                report.equal(f'{part}.{name}', shapes.get(name.rpartition('ema_model.')[2]), recorded)
    order = [tuple(map(int, name.split('.')[:2])) for name in fixture.json['synth_order']]
    steps, gammas = [step for _, step in order], [ema.gammas[index] for index, _ in order]
    for name, expected in fixture.json['synth'].items():
        given = _named(name, sigma=r'sigma([\d.]+)\.step', step=r'step(\d+)')
        step = int(given['step']) if 'step' in given else None
        states = ema.synthesize(given['sigma'], step)['model']
        report.close(f'{name}.w', states['w'], fixture[f'synth.{name}.w'])
        report.close(f'{name}.result', states['w'], expected['result_w'])
        report.equal(f'{name}.frozen', states['frozen'].tolist(), [1., 1.])
        weights = combination(steps, gammas, step or max(steps), gamma_of(given['sigma']))
        report.close(f'{name}.weights', weights, fixture[f'synth.{name}.weights'])
        report.close(f'{name}.weights.json', weights, expected['weights'])
        report.close(f'{name}.sum', weights.sum(), expected['sum_of_weights'])


class _Draws:
    """Recorded draws instead of random ones; asked for in another order or shape, they fail."""

    def __init__(self, normal: tp.Iterable[torch.Tensor], uniform: tp.Iterable[torch.Tensor]):
        self.normal, self.uniform = collections.deque(normal), collections.deque(uniform)

    def _next(self, queue: collections.deque, shape: tuple[int, ...]) -> torch.Tensor:
        draw = queue.popleft()
        assert tuple(draw.shape[1:]) == shape, f'drew {shape}, recorded {tuple(draw.shape[1:])}'
        return draw

    def randn(self, *shape: int) -> torch.Tensor:
        return self._next(self.normal, shape)

    def rand(self, *shape: int) -> torch.Tensor:
        return self._next(self.uniform, shape)


def _recorded_solver(fixture: Fixture, step_draws: tp.Callable[[], _Draws]) -> tp.Any:
    """The solver's own `run_step`, on the recorded model, hyper-parameters and draws; without folders and stages."""
    from audiocraft.solvers.mmaudio import MMAudioSolver  # pulls in Dora, which the other checks do not need

    class Recorded(MMAudioSolver):
        is_training = True

        def __init__(self) -> None:
            hyper = fixture.metadata['hyper']
            # The recording shares one mask between pictures and motion, also with the second version of the network.
            self.cfg = OmegaConf.create({
                'sampling': {'mean': 0., 'scale': 1., 'min_sigma': hyper['min_sigma']},
                'null_condition': {'probability': hyper['null_prob'], 'text_probability': hyper['null_prob'],
                                   'joint': True}})
            self.device = torch.device('cpu')
            self.model = build({'_target_': 'audiocraft.models.mmaudio.MMAudio', **fixture.metadata['config']})
            self.model.load_state_dict(fixture.state('sd0.'))
            self.updater = _updater(self.model, hyper)

        def draws(self, size: int) -> _Draws:
            return step_draws()

        def autocast(self):
            return contextlib.nullcontext()

    return Recorded()


def _updater(model: nn.Module, hyper: dict[str, tp.Any]) -> optim.Updater:
    adamw = {'_target_': 'torch.optim.AdamW', **{key: hyper[key] for key in ('betas', 'eps', 'weight_decay')}}
    optimizer = optim.build_optimizer(model.parameters(), {'lr': hyper['lr'], 'optimizer': adamw})
    schedule = optim.build_lr_scheduler(optimizer, {
        '_target_': 'audiocraft.optim.schedules.WarmupSteps', 'warmup': hyper['warmup'], 'gamma': hyper['gamma'],
        'milestones': hyper['milestones_after_warmup']}, 100)
    return optim.Updater(model.parameters(), optimizer, scheduler=schedule, max_norm=hyper['clip'],
                         ema=optim.PostHocEMA({'model': model}))


def _batch(fixture: Fixture) -> tp.Any:
    """The recorded batch as the loader makes it: only the rows that have a modality."""
    from audiocraft.data.store_dataset import Batch
    names = {'mean': 'a_mean', 'std': 'a_std', 'clip_features': 'clip_features', 'sync_features': 'sync_features',
             'text_features': 'text_features'}
    exist = {'clip_features': 'video_exist', 'sync_features': 'video_exist', 'text_features': 'text_exist'}
    tensors = {key: fixture[f'batch.{name}'] for key, name in names.items()}
    rows = {key: fixture[f'batch.{name}'].nonzero()[:, 0] for key, name in exist.items()
            if not fixture[f'batch.{name}'].all()}
    tensors |= {key: tensors[key][index] for key, index in rows.items()}
    size = len(tensors['mean'])
    return Batch(ids=[str(i) for i in range(size)], captions=[''] * size, tensors=tensors, rows=rows)


def check_train_steps(fixture: Fixture, report: Report) -> None:
    """Losses, gradient norms and rates of every step; parameters and both averages after the last one."""
    current: dict[str, torch.Tensor] = {}

    def draws() -> _Draws:
        # The time was recorded after its sigmoid.
        z = current['t'].double().logit().float()
        return _Draws([current['a_randn'], z, current['x0']], [current['u_video'], current['u_text']])

    losses: list[torch.Tensor] = []
    flow_loss = path.flow_loss

    def recording_loss(*args, **kwargs):
        losses.append(flow_loss(*args, **kwargs))
        return losses[-1]

    for key in ('config', 'hyper'):
        report.equal(key, fixture.json[key], fixture.metadata[key])
    solver, batch = _recorded_solver(fixture, draws), _batch(fixture)
    with mock.patch.object(path, 'flow_loss', recording_loss):
        for index, expected in enumerate(fixture.json['steps']):
            current = fixture.group(f'draw{index}.')
            metrics = solver.run_step(index, batch, {})
            report.close(f'step{index}.loss_per_item', losses[-1], fixture[f'step{index}.loss_per_item'])
            for name, key in (('loss', 'mean_loss'), ('grad_norm', 'grad_norm_before_clip'), ('lr', 'lr_used')):
                report.close(f'step{index}.{name}', metrics[name], expected[key])
    _check_weights(fixture, report, solver.model, solver.updater.ema)


def _check_weights(fixture: Fixture, report: Report, model: nn.Module, ema: optim.PostHocEMA) -> None:
    final = model.state_dict()
    for key, expected in fixture.group('final.').items():
        report.close(f'final.{key}', final[key], expected)
    norms = fixture.json['final_param_norms']
    report.equal('final names', sorted(norms), sorted(final))
    for key, expected in norms.items():
        report.close(f'norm.{key}', final[key].double().norm(), expected)
    for index, states in enumerate(ema.state_dict()['averages']):
        for key, expected in fixture.group(f'ema{index}.').items():
            report.close(f'ema{index}.{key}', states['model'][key], expected)


CHECKS = {
    'mmaudio/lr_schedule_default': check_lr_schedule_default,
    'mmaudio/posthoc_ema': check_posthoc_ema,
    'mmaudio/train_steps': check_train_steps,
    'mmaudio/train_steps_v2net': check_train_steps,
}
