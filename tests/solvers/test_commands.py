"""Commands to a training that runs: what they do, and that training goes on as if most of them had not been."""

import json

import pytest

from audiocraft.utils.checkpoint import list_checkpoints, load_latest
from audiocraft.utils.config import build

from .conftest import ToySolver
from .test_base_resume import differences, outcome


class Told(ToySolver):
    """Is told lines at updates, as if they had been typed; remembers the answers."""

    lines: dict[int, list[str]] = {}
    answers: list[str] = []

    def run_step(self, idx, batch, metrics):
        if self.is_training:
            for line in self.lines.get(self.update, []):
                self.control._typed.put(line)
        return super().run_step(idx, batch, metrics)

    def build_model(self):
        super().build_model()
        answer, self.control.answer = self.control.answer, lambda command, text: (
            type(self).answers.append(f'{command.text}: {text}'), answer(command, text))


def tell(toy, lines, *overrides, name='a', **kwargs):
    Told.lines, Told.answers = lines, []
    runner = toy(*overrides, solver=Told, name=name, **kwargs)
    return runner, runner.run()


def test_training_goes_on_as_if_they_had_not_been(toy):
    plain, _ = tell(toy, {}, name='plain')
    told, _ = tell(toy, {3: ['eval', 'time', 'help'], 6: ['save', 'lr', 'eval'], 8: ['what', 'lr nan', 'save@2']})
    a, b = outcome(plain), outcome(told)
    for tree in (a, b):
        tree['lines'] = [line for line in tree['lines'] if line['kind'] == 'step' or line['update'] in (5, 10, 15)]
    b['stages'].pop('evaluate'), a['stages'].pop('evaluate')
    assert differences(a, b) == []
    assert json.loads((told.xp_folder / 'evaluate' / '4.json').read_text())['whole_epoch'] is False
    assert [text.split(':')[0] for text in Told.answers] == [
        'help', 'eval', 'time', 'save', 'lr', 'eval', '"what"', '"lr nan"', 'save@2']
    assert sum('error: ' in text for text in Told.answers) == 3


def test_a_rate_stays_in_force(toy):
    _, plain = tell(toy, {}, 'schedule=cosine', 'schedule.warmup=0', name='plain')
    runner, told = tell(toy, {6: ['lr 0.001']}, 'schedule=cosine', 'schedule.warmup=0')
    assert told.history[1]['control'] == {'lr': 0.001, 'lr_update': 7}
    rates = [json.loads(line) for line in (runner.xp_folder / 'metrics.jsonl').read_text().splitlines()]
    assert any(entry['kind'] == 'command' and entry['metrics'] == {'lr': 0.001} for entry in rates)
    scale = load_latest(runner.xp_folder / 'checkpoints').state['objects']['schedule']['scale']
    assert scale == pytest.approx(0.001 / (0.01 * plain.schedule.factor(7)))
    assert told.updater.lr == pytest.approx(plain.updater.lr * scale)


def test_a_rate_without_a_schedule(toy):
    class Plain(Told):
        def build_model(self):
            super().build_model()
            self.updater.scheduler = None
            del self.schedule
            self.stateful.sources.pop('schedule')

    Told.lines, Told.answers = {2: ['lr 0.5']}, []
    solver = toy(solver=Plain).run()
    assert solver.updater.lr == 0.5


def test_quit_saves_and_the_rest_is_done_later(toy):
    Told.lines, Told.answers = {2: ['quit', 'lr 0.004@5', 'save@7']}, []
    runner = toy(solver=Told)
    with pytest.raises(SystemExit) as ended:
        runner.run()
    assert ended.value.code == 0 and load_latest(runner.xp_folder / 'checkpoints').update == 3
    assert load_latest(runner.xp_folder / 'checkpoints').state['control'] == ['lr 0.004@5', 'save@7']
    Told.lines = {}
    solver = runner.run('checkpoint.keep_last=null')
    assert solver.history[0]['control'] == {'lr': 0.004, 'lr_update': 5}
    assert '7' in [path.name for path in list_checkpoints(runner.xp_folder / 'checkpoints')]


def test_export_of_a_model_that_was_built(toy):
    node = {'_target_': 'audiocraft.modules.mlp.MLP', 'dim': 4, 'hidden_dim': 8}

    class Built(Told):
        def build_model(self):
            super().build_model()
            self.extra = build(node)
            self.register_stateful('extra')

    Told.lines, Told.answers = {1: ['export']}, []
    runner = toy(solver=Built)
    solver = runner.run()
    assert 'exported extra' in Told.answers[0]
    from audiocraft.models.exported import read_exported
    found = read_exported(runner.xp_folder / 'exports' / '2' / 'extra')
    assert found.update == 2 and found.models['model'].keys() == solver.extra.state_dict().keys()


def test_nothing_to_export_is_said(toy):
    tell(toy, {1: ['export']})
    assert Told.answers == ['export: error: no registered module was made by `build`, so that none can be made again '
                            'from a file.']


def test_commands_within_a_stage(toy):
    class Late(Told):
        def evaluate(self):
            for line in ['time', 'save', 'lr 0.3']:
                self.control._typed.put(line)
            self.check_stop()
            return super().evaluate()

    Told.lines, Told.answers = {}, []
    solver = toy(solver=Late).run()
    assert [text.split(':')[0] for text in Told.answers] == ['time', 'save', 'lr 0.3']
    assert 'not during evaluate' in Told.answers[1] and solver.updater.lr == pytest.approx(0.3)
