"""Samplers: integrate a velocity field from one time to another.

A field is a function `(t, x) -> velocity`, with `t` a tensor without dims and `x` of any shape.
"""

import typing as tp

import torch

from .guidance import Field


def times(n: int, start: float = 0., end: float = 1.) -> torch.Tensor:
    """The `n + 1` evenly spaced times of `n` steps, fp32. From 0 to 1 generates, from 1 to 0 finds the noise."""
    return torch.linspace(start, end, n + 1)


def _steps(times: torch.Tensor, x: torch.Tensor) -> tp.Iterator[tuple[torch.Tensor, torch.Tensor]]:
    times = times.to(x.device)
    return zip(times[:-1], times[1:] - times[:-1])


def euler(field: Field, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Follow the field with straight steps between the times; one call of the field per step."""
    for t, step in _steps(times, x):
        x = x + step * field(t, x)
    return x


def midpoint(field: Field, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Take each step with the velocity found in its middle; two calls of the field per step, of second order."""
    for t, step in _steps(times, x):
        middle = x + step / 2 * field(t, x)
        x = x + step * field(t + step / 2, middle)
    return x


# Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980: rows of (time, weights of the stages before).
_STAGES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1., (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1., (35 / 384, 0., 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
# Difference of the solutions of order 5 and 4.
_ERROR = (71 / 57600, 0., -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _weighted(stages: list[torch.Tensor], weights: tuple[float, ...]) -> torch.Tensor:
    return torch.stack([stage * weight for stage, weight in zip(stages, weights) if weight]).sum(0)


def _try_step(field: Field, t: float, x: torch.Tensor, step: float, first: torch.Tensor
              ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step: where it ends, the velocity there, and the estimated error."""
    stages, y = [first], x
    for fraction, weights in _STAGES:
        y = x + step * _weighted(stages, weights)
        stages.append(field(torch.tensor(t + fraction * step, dtype=x.dtype, device=x.device), y))
    return y, stages[-1], step * _weighted(stages, _ERROR)


def adaptive(field: Field, x: torch.Tensor, start: float = 0., end: float = 1., rtol: float = 1e-7,
             atol: float = 1e-9, max_steps: int = 10_000) -> torch.Tensor:
    """Follow the field with steps as long as the tolerances allow (Dormand-Prince 5(4)).

    Args:
        field (callable): the velocity field; six calls per step.
        x (torch.Tensor): the state at time `start`.
        start (float): first time.
        end (float): last time; may be smaller than `start`.
        rtol (float): allowed error of a step, relative to the state.
        atol (float): allowed error of a step, added to that.
        max_steps (int): number of steps, refused ones included, after which to give up.
    Returns:
        torch.Tensor: the state at time `end`, shaped as `x`.
    Raises:
        RuntimeError: when the steps do not suffice, as with a field that is not finite.
    """
    t, velocity = start, field(torch.tensor(start, dtype=x.dtype, device=x.device), x)
    step = (end - start) * 1e-2
    for _ in range(max_steps):
        if t == end:
            return x
        last = abs(step) >= abs(end - t)
        step = end - t if last else step
        y, next_velocity, error = _try_step(field, t, x, step, velocity)
        allowed = atol + rtol * torch.maximum(x.abs(), y.abs())
        ratio = (error / allowed).square().mean().sqrt().item()
        if ratio <= 1:
            t, x, velocity = end if last else t + step, y, next_velocity
        # Aim at 0.9 of what the error of order 5 allows, and change by a factor of 10 at most.
        step *= min(10., max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2)) if ratio == ratio else 0.2
    raise RuntimeError(f'No solution from time {start} to {end} in {max_steps} steps; stopped at {t}.')


# Samplers with steps between given times, by name.
_FIXED: dict[str, tp.Callable[[Field, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    'euler': euler, 'midpoint': midpoint}
METHODS = (*_FIXED, 'adaptive')
"""The names that `integrate` knows."""

# Networks compute in float32: below this the steps get shorter for the sake of rounding errors, ten times more of them.
TOLERANCE = 1e-5


def integrate(field: Field, x: torch.Tensor, *, method: str = 'euler', steps: int = 25, start: float = 0.,
              end: float = 1.) -> torch.Tensor:
    """Follow a field from time `start` to `end` by the method of that name, with evenly spaced steps if it takes any.

    Raises:
        ValueError: for a method that is not one of `METHODS`.
    """
    if method == 'adaptive':
        return adaptive(field, x, start, end, rtol=TOLERANCE, atol=TOLERANCE)
    if method not in _FIXED:
        raise ValueError(f'sampling method {method} is not known: expected {", ".join(METHODS[:-1])} or {METHODS[-1]}')
    return _FIXED[method](field, x, times(steps, start, end))
