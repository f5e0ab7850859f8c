"""The game "mark the matches": its pictures, labels and windows are what it says, and its runs repeat."""
import numpy as np
import pytest
import torch
from torch import nn

from scnet_minimal import SCConv
from scnet_minimal.lab import zoo
from scnet_minimal.lab.study import dots


def found_dots(picture, labels):
    """[(row, column, colour, label)] of the dots, from the picture's bright pixels alone; label from the dot's pixels.
    """
    found = []
    for colour in (0, 2):
        bright = picture[colour] > 0.5                                             # (24, 24)
        for row, column in np.argwhere(bright.numpy()):
            if not any(0 <= row - r <= 1 and 0 <= column - c <= 1 for r, c, k, _ in found if k == colour):
                assert bright[row:row + 2, column:column + 2].all()
                (label,) = labels[row:row + 2, column:column + 2].unique().tolist()
                found.append((int(row), int(column), colour, label))
    return found


def distance(a, b):
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def partners(found):
    """(dot, its nearest other dot) for every dot."""
    return [(a, min((b for b in found if b is not a), key=lambda b: distance(a, b))) for a in found]


def test_a_label_says_whether_the_nearest_dot_has_the_same_colour():
    x, y = dots.make_pictures(300, seed=1, distances=range(3, 10))  # at 2 px, two dots of one colour may be one shape
    for picture, labels in zip(x, y):
        found = found_dots(picture, labels)
        assert len(found) == 4 and int((labels > 0).sum()) == 16
        for dot, partner in partners(found):
            assert dot[3] == (1 if dot[2] == partner[2] else 2)


@pytest.mark.parametrize("d", [3, 5, 9, 11])
def test_pairs_are_as_far_apart_as_asked_and_further_from_each_other(d):
    x, y = dots.make_pictures(40, seed=d, distances=[d])
    for picture, labels in zip(x, y):
        found = found_dots(picture, labels)
        apart = sorted(distance(a, b) for i, a in enumerate(found) for b in found[:i])
        assert apart[:2] == [d, d] and apart[2] >= d + 2


def test_partners_lie_in_every_direction_and_labels_are_balanced():
    corner = dots.place_dots(np.full(4000, 5), np.random.default_rng(0))
    step = (corner[:, :, 1] - corner[:, :, 0]).reshape(-1, 2)                      # (8000, down and right)
    for axis in (0, 1):
        for end in (-5, 5):
            assert 0.2 < (step[:, axis] == end).mean() < 0.35                      # an edge of the square in four
    assert set(map(tuple, step)) == {(a, b) for a in range(-5, 6) for b in range(-5, 6) if max(abs(a), abs(b)) == 5}
    _, y = dots.make_pictures(2000, seed=2)
    assert 0.47 < (y == 1).sum() / (y > 0).sum() < 0.53


def test_one_dot_says_nothing_about_its_label():
    x, y = dots.make_pictures(3000, seed=5)
    for label in (1, 2):
        red = ((x[:, 0] > 0.5) & (y == label)).sum()
        assert 0.47 < red / (y == label).sum() < 0.53


def test_every_distance_is_as_frequent_and_no_picture_returns():
    corner = dots.place_dots(np.random.default_rng(0).choice(dots.DISTANCES, 4000), np.random.default_rng(1))
    apart = abs(corner[:, 0, 1] - corner[:, 0, 0]).max(-1)
    assert np.bincount(apart)[2:].min() > 420 and set(apart) == set(dots.DISTANCES)
    (x, y), (again, _), (other, _) = (dots.make_pictures(4, seed) for seed in (7, 7, 8))
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert x.shape == (4, 3, 24, 24) and x.dtype == torch.float32 and y.shape == (4, 24, 24) and y.dtype == torch.int64


def test_dot_iou_by_hand():
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    assert dots.dot_iou(y, y) == 1
    assert dots.dot_iou(torch.tensor([0, 1, 1, 1, 1, 2]), y) == pytest.approx((2 / 4 + 1 / 2) / 2)
    _, y = dots.make_pictures(2000, seed=0)
    guess = torch.where(y > 0, torch.randint(1, 3, (2000, 1, 1), generator=torch.Generator().manual_seed(0)), 0)
    assert dots.dot_iou(guess, y) == pytest.approx(1 / 3, abs=0.02)               # every dot found, nothing compared


def seen_from(net, row, column, size):
    """Which pixels (size, size) reach the logits at a pixel, by gradient."""
    x = torch.randn(4, 3, size, size, dtype=torch.float64, requires_grad=True)
    net(x)[:, :, row, column].sum().backward()
    return x.grad.abs().sum((0, 1)) > 0


@pytest.mark.parametrize("name", [n for n in dots.BLOCKS if n != "sc4_max"])       # max: the gradient meets one pixel
def test_windows_are_as_counted(name):
    torch.manual_seed(0)
    block, size, middle = dots.BLOCKS[name], 56, 24                                # middle: a corner of every patch
    net = dots.network(block.make()).double().eval()
    pools = any(isinstance(m, nn.AvgPool2d) for m in net.modules())                # else every pixel sees alike
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    near, far, side = [], [], []
    for i in range(8 if pools else 1):                                             # every place within a patch of 8
        seen = seen_from(net, middle + i, middle + i, size)
        away = torch.maximum((rows - middle - i).abs(), (columns - middle - i).abs())
        near.append(int(away[~seen].min()) - 1 if not seen.all() else None)
        far.append(int(away[seen].max()))
        down = seen.any(1).nonzero()
        side.append(int(down.max() - down.min()) + 1 - 2)                          # the stem adds a pixel on each side
    if block.window is None:
        assert near == [None]
    else:
        assert (max(side), min(near), max(far)) == (block.window, block.near, block.far)


@pytest.mark.parametrize("name", ["dilated3", "sc2"])
def test_the_last_glimpse_of_a_partner_is_a_pixel_beyond_the_reach(name):
    """Turn a partner's colour: at which of a dot's pixels does the network's answer change?"""
    torch.manual_seed(0)
    block, rng = dots.BLOCKS[name], np.random.default_rng(0)
    net, share = dots.network(block.make()).double().eval(), {}
    for d in range(block.near, block.far + 3):
        corner = dots.place_dots(np.full(50, d), rng)[:, 0]                        # (50, two dots, row and column)
        x, dot = torch.zeros(2, 50, 3, 24, 24, dtype=torch.float64), torch.zeros(50, 24, 24, dtype=torch.bool)
        for n, ((row, column), (there, across)) in enumerate(corner):
            dot[n, row:row + 2, column:column + 2] = x[:, n, 0, row:row + 2, column:column + 2] = 1
            for colour in (0, 2):
                x[colour // 2, n, colour, there:there + 2, across:across + 2] = 1
        share[d] = (net(x[0]) != net(x[1])).any(1)[dot].double().mean()
    assert share[block.near] == 1 > share[block.far + 1] > 0 == share[block.far + 2]


def test_the_ceiling_is_one_where_all_is_seen_and_a_coin_toss_where_nothing_is():
    blind = dots.ceiling(nn.Conv2d(16, 16, 1), pictures=500)                  # the stem's 3x3 alone
    assert 1 / 3 < blind[0] < 0.6                                             # dots that touch: half their pixels
    assert (blind[1:] == 1 / 3).all()
    everything = dots.ceiling(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(dots.SIZE)), pictures=500)
    assert (everything == 1).all()
    near = dots.ceiling(nn.Conv2d(16, 16, 5, padding=2), pictures=500)        # with the stem 7x7: 3 px, a dot is 2
    assert (near[:2] == 1).all() and 1 / 3 < near[2] < 1 and (near[3:] == 1 / 3).all()


def test_a_relu_that_is_at_0_before_training_does_not_lower_the_ceiling():
    block = dots.SqueezeExcite()
    with torch.no_grad():
        block.weigh[1].bias.fill_(-100)                      # all hidden units are at 0: no gradient passes
    assert (dots.ceiling(block, pictures=100) == 1).all()
    torch.manual_seed(0)
    two = [dots.ceiling(dots.BLOCKS["two"].make(), pictures=500) for _ in range(3)]
    assert (np.ptp(two, axis=0) == 0).all()                  # any random weights show the same window


def test_the_variant_with_nothing_changed_is_scconv():
    torch.manual_seed(0)
    block, variant, x = SCConv(16), dots.Variant(), torch.randn(2, 16, 24, 24)
    variant.load_state_dict(block.state_dict())
    assert torch.equal(variant(x), block(x))
    for change in (dict(product=False), dict(identity=False), dict(mode="bilinear"),
                   dict(pool=nn.functional.max_pool2d)):
        other = dots.Variant(**change)
        other.load_state_dict(block.state_dict())
        assert not torch.allclose(other(x), block(x), atol=1e-3)


def test_blocks_keep_the_shape_and_most_have_the_weights_of_one_3x3():
    weights = {}
    for name, block in dots.BLOCKS.items():
        made = block.make()
        assert made(torch.randn(2, 16, 24, 24)).shape == (2, 16, 24, 24), name
        weights[name] = sum(m.weight.numel() for m in made.modules() if isinstance(m, nn.Conv2d))
    equal = {n for n in weights if n.startswith(("plain", "dilated", "stack_", "coarse", "sc"))} - {"sc4_no_k2"}
    assert {weights[n] for n in equal} == {2304}
    others = {"two": 4608, "stack": 6912, "large": 43264, "calibrate_all": 2475,
              "sc4_no_k2": 1728, "ghost": 1224, "ghost_dilated": 1224, "ghost_first": 1224,
              "ghost_both": 1224, "se": 2432}
    assert {n: weights[n] for n in others} == others


@pytest.mark.slow
def test_a_run_repeats_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    job = {"block": "sc4", "seed": 3, "pictures": 64}
    rows = [dots.play(job) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    for row in rows:
        del row["cpu_s"]
    assert rows[0] == rows[1] and list(rows[0])[3:] == ["iou", *(f"iou_{d}" for d in dots.DISTANCES)]


@pytest.mark.parametrize("name, lowest, highest", [("sc4", 0.70, 0.90), ("coarse", 0.05, 0.25), ("plain", 0.25, 0.50)])
def test_kept_networks_play_as_the_record_says(name, lowest, highest):
    net = dots.network(dots.BLOCKS[name].make())
    net.load_state_dict(torch.load(zoo.trained(f"dots_{name}", 0), weights_only=True))
    assert lowest < dots.score(net.eval(), seed=0)["all"] < highest
