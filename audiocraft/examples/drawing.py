"""Pictures of example clips: anti-aliased shapes over a still background, as yuv420p planes (BT.601, limited range).

Drawn in numpy for all pictures of a clip at once; positions are sub-pixel, so that motion shows even in strongly
pooled pictures. Nothing but the position of the objects depends on time, apart from the noise of the camera.
"""

import typing as tp

import numpy as np

from .scene import KINDS, Scene

_TO_YUV = np.asarray([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.], [112., -93.786, -18.214]]) / 255
_OFFSET = np.asarray([16., 128., 128.])


def to_yuv(rgb: tp.Any) -> np.ndarray:
    """Return luma and chroma `[..., 3]` of colours `[..., 3]` in 0..255."""
    return np.asarray(rgb, dtype=np.float64) @ _TO_YUV.T + _OFFSET


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return how much of each pixel a shape covers, 0..1, from the signed distance of its centre to the outline."""
    if shape == 'disc':
        distance = np.hypot(x, y) - radius
    elif shape == 'ring':
        distance = np.abs(np.hypot(x, y) - 0.7 * radius) - 0.3 * radius
    elif shape == 'square':
        distance = np.maximum(np.abs(x), np.abs(y)) - radius
    elif shape == 'diamond':
        distance = (np.abs(x) + np.abs(y) - radius) * np.sqrt(0.5)
    else:
        raise ValueError(f'unknown shape {shape!r}')
    return np.clip(0.5 - distance, 0., 1.)


def draw_pictures(rng: np.random.Generator, scene: Scene, at: np.ndarray) -> np.ndarray:
    """Return the pictures `[N, H * 3 / 2, W]` uint8 (yuv420p) of a scene at the times `at` `[N]`, seconds."""
    width, height = scene.size
    background = _background(rng, scene)
    side = 2 * int(np.ceil(max(body.radius for body in scene.bodies))) + 6
    # Objects may touch the border of the picture: the canvas has a rim that is cut off at the end.
    luma = np.repeat(np.pad(background[0], side, mode='edge')[None], len(at), 0)
    chroma = [np.repeat(np.pad(plane, side // 2, mode='edge')[None], len(at), 0) for plane in background[1:]]
    color = to_yuv(np.clip(np.asarray(KINDS[scene.kind].color) + rng.uniform(-12, 12, 3), 0, 255))
    for body in range(len(scene.bodies)):
        _draw_body(luma, chroma, scene, body, at, side, color)
    luma = luma[:, side:side + height, side:side + width]
    luma += _camera_noise(rng, luma.shape)
    half = slice(side // 2, side // 2 + height // 2), slice(side // 2, side // 2 + width // 2)
    planes = [luma] + [plane[:, half[0], half[1]] for plane in chroma]
    flat = [np.clip(plane + 0.5, 16, 240).astype(np.uint8).reshape(len(at), -1) for plane in planes]
    return np.concatenate(flat, 1).reshape(len(at), height * 3 // 2, width)


def _draw_body(luma: np.ndarray, chroma: list[np.ndarray], scene: Scene, body: int, at: np.ndarray, side: int,
               color: np.ndarray) -> None:
    radius, shape = scene.bodies[body].radius, KINDS[scene.kind].shape
    centers = scene.centers(at, body).astype(np.float32)
    corners = (2 * np.floor((centers - side / 2) / 2)).astype(np.int64)
    grid = np.arange(side, dtype=np.float32) + 0.5
    x = (corners[:, :1] + grid - centers[:, :1])[:, None, :]
    y = (corners[:, 1:] + grid - centers[:, 1:])[:, :, None]
    alpha = coverage(shape, x, y, radius).astype(np.float32)
    shade = color[0] * (1 - 0.12 * (x + y) / (2 * radius))  # lit from above, from the left
    thin = alpha.reshape(len(at), side // 2, 2, side // 2, 2).mean((2, 4))
    corners = np.clip(corners + side, 0, [luma.shape[2] - side, luma.shape[1] - side])
    for index, (left, top) in enumerate(corners):
        patch = luma[index, top:top + side, left:left + side]
        patch += alpha[index] * (shade[index] - patch)
        for plane, value in zip(chroma, color[1:]):
            patch = plane[index, top // 2:(top + side) // 2, left // 2:(left + side) // 2]
            patch += thin[index] * (np.float32(value) - patch)


def _background(rng: np.random.Generator, scene: Scene) -> list[np.ndarray]:
    """Draw what never moves: a gradient, the surfaces and some clutter; planes `[H, W]`, `[H / 2, W / 2]` twice."""
    width, height = scene.size
    y, x = np.mgrid[0:height, 0:width] + 0.5
    base = rng.uniform(30, 60) + rng.uniform(-10, 10, 3)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5))[..., None]
    picture = base + rng.uniform(5, 25) * ramp * rng.uniform(0.7, 1.3, 3)
    for _ in range(rng.integers(2, 7)):  # clutter
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        inside = (np.abs(x - left) < rng.uniform(3, 25)) & (np.abs(y - top) < rng.uniform(3, 20))
        picture[inside] += rng.uniform(-14, 14) + rng.uniform(-5, 5, 3)
    surface = base + rng.uniform(12, 30) * rng.choice([-1, 1]) + rng.uniform(-6, 6, 3)
    picture[_solid(scene, x, y)] = surface
    yuv = to_yuv(np.clip(picture, 4, 110)).astype(np.float32)
    small = yuv.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    return [np.ascontiguousarray(yuv[..., 0])] + [np.ascontiguousarray(small[..., index]) for index in (1, 2)]


def _solid(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where the surfaces are, `[H, W]`: floor, ceiling and walls always, the post if something strikes it."""
    frame = scene.frame
    solid = (y > frame['floor']) | (y < frame['ceiling']) | (x < frame['left wall']) | (x > frame['right wall'])
    if any(body.surface == 'post' for body in scene.bodies):
        solid |= (np.abs(x - frame['post']) < frame['post width'] / 2) & (y > frame['ceiling'] + 0.2 * y.max())
    return solid


def _camera_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return `[N, H, W]` noise: windows of one drawn field at random places, since fresh noise would cost too much."""
    count, height, width = shape
    field = (rng.standard_normal((height + 48, width + 48)) * rng.uniform(0.5, 2.)).astype(np.float32)
    offsets, signs = rng.integers(0, 48, (count, 2)), rng.choice([-1, 1], count)
    return np.stack([sign * field[top:top + height, left:left + width] for (top, left), sign in zip(offsets, signs)])
