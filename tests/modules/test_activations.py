"""Activations by name."""

import pytest
import torch

from audiocraft.modules.activations import Snake, build_activation


def test_snake_per_channel():
    snake, x = Snake(2), torch.linspace(-3, 3, 10).expand(1, 2, 10)
    torch.testing.assert_close(snake(x), x + torch.sin(x) ** 2)
    snake.alpha.data[0, 1] = 2.
    torch.testing.assert_close(snake(x)[0, 0], x[0, 0] + torch.sin(x[0, 0]) ** 2)
    torch.testing.assert_close(snake(x)[0, 1], x[0, 1] + torch.sin(2 * x[0, 1]) ** 2 / 2)
    snake(x).sum().backward()
    assert snake.alpha.grad.shape == (1, 2, 1) and snake.alpha.grad.all()


def test_snake_of_zero_is_finite():
    torch.testing.assert_close(Snake(1, alpha=0.)(torch.ones(1, 1, 2)), torch.ones(1, 1, 2))


def test_by_name():
    x = torch.tensor([[[-2., 3.]]])
    torch.testing.assert_close(build_activation('LeakyReLU', {'negative_slope': .5}, 1)(x), torch.tensor([[[-1., 3.]]]))
    torch.testing.assert_close(build_activation('ELU', None, 1)(x), torch.nn.functional.elu(x))
    assert build_activation('snake', {'alpha': 3.}, 4).alpha.flatten().tolist() == [3.] * 4


@pytest.mark.parametrize('name', ['Linear', 'elu', 'Snake', '__all__', ''])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=f"activation '{name}' is unknown, expected snake or one of torch.nn"):
        build_activation(name, None, 1)
