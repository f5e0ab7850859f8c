"""The two-dots test: its pictures are what the notebooks say, and its runs repeat."""
import numpy as np
import pytest
import torch
from torch import nn

from scnet_minimal.lab import dots


def centres(picture):
    """Colour and upper left corner of the two dots of a picture, from its strongest 2x2 squares."""
    sums = nn.functional.avg_pool2d(picture[None], 2, 1)[0]                 # (3, 19, 19)
    found = []
    for _ in range(2):
        colour, row, column = np.unravel_index(int(sums.argmax()), sums.shape)
        found.append((int(colour), int(row), int(column)))
        sums[colour, max(0, row - 1):row + 2, max(0, column - 1):column + 2] = -9
    return found


def test_labels_say_whether_the_colours_match_and_are_balanced():
    x, y = dots.two_dots(200, seed=3)
    assert x.shape == (200, 3, 20, 20) and x.dtype == torch.float32 and int(y.sum()) == 100
    assert [int(a[0] == b[0]) for a, b in map(centres, x)] == y.tolist()


def test_dots_are_as_far_apart_as_asked():
    x, _ = dots.two_dots(200, seed=4, distance=(6, 9))
    apart = [np.hypot(a[1] - b[1], a[2] - b[2]) for a, b in map(centres, x)]
    assert 6 <= min(apart) < 6.6 and 8.4 < max(apart) <= 9


def test_one_dot_says_nothing_about_the_label():
    x, y = dots.two_dots(3000, seed=5)
    first = np.array([centres(picture)[0][0] for picture in x])
    assert all(abs(y.numpy()[first == colour].mean() - 0.5) < 0.05 for colour in range(3))


def test_runs_repeat_whether_side_by_side_or_alone():
    block = {"plain": lambda: nn.Conv2d(16, 16, 3, padding=1)}
    state, cores = torch.get_rng_state(), torch.get_num_threads()
    found = dots.compare(block, seeds=(0, 1), distance=(3, 4), epochs=3)
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == cores
    torch.set_num_threads(1)                                                # as compare does, for equal rounding
    try:
        alone = [dots.train(block["plain"], seed, distance=(3, 4), epochs=3) for seed in (0, 1)]
        assert found == {"plain": alone}
    finally:
        torch.set_num_threads(cores)


@pytest.mark.parametrize("distance, lowest, highest", [((2, 3), 0.8, 1), ((10, 12), 0.35, 0.65)])
def test_a_plain_convolution_compares_only_what_its_window_holds(distance, lowest, highest):
    block = lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))  # noqa: E731
    assert lowest <= dots.train(block, 0, distance=distance, epochs=10) <= highest
