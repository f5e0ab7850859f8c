"""One look for all figures of the course: colours with a fixed meaning, a style, alt text, and the diagrams."""
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from torch import Tensor

# Okabe and Ito's colours, told apart by colour-blind eyes; each stands for the same thing in every notebook.
SC, PLAIN, DILATED, GHOST, OTHER, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C", "#222222"

STYLE = {
    "figure.dpi": 110, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "image.cmap": "gray", "legend.frameon": False}


def use_style() -> None:
    """The course's matplotlib settings from now on: a notebook calls this once, below its imports."""
    plt.rcParams.update(STYLE)


def show(fig: Figure, alt: str) -> None:
    """Display a figure once, with words for those who cannot see it (kept in the notebook and in its web page)."""
    from IPython.display import display

    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


def _draw_differences(ax, compared: list) -> None:
    for row, (_, pairs, seeds, *both) in enumerate(compared):
        for _, low, high in both:
            ax.plot([100 * low, 100 * high], [row] * 2, "|-", ms=11, mew=1.5, color=OTHER, lw=1.5,
                    label="" if row else "for new seeds and photographs")
        ax.plot([100 * v for v in seeds[1:]], [row] * 2, color=INK, lw=3.5, solid_capstyle="butt",
                label="" if row else "95 % interval for new seeds")
        ax.plot([100 * d for d in pairs], [row - 0.24] * len(pairs), "o", ms=3.5, color=OTHER,
                label="" if row else "a pair")
        ax.plot(100 * seeds[0], row, "o", ms=7, color="white", mec=INK, mew=1.5, label="" if row else "mean")
    ax.axvline(0, color=INK, lw=1, ls=":")
    ax.set_yticks(range(len(compared)), [label for label, *_ in compared])
    ax.set(title="differences of pairs, and 95 % intervals", xlabel="points of top-1")
    ax.invert_yaxis()


def differences(compared: list) -> Figure:
    """What pairs differ by, as on the right of seeds_and_differences, whose `compared` this takes; the last interval
    may be missing."""
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
        _draw_differences(ax, compared)
        fig.legend(fontsize=8, ncols=4, loc="outside lower center")
    return fig


def ladder(values: list[float], halves: dict[str, float], alt: str) -> None:
    """A dot for each difference (points), and below them a bar around their mean for each half width, by its label."""
    mean = sum(values) / len(values)
    fig, ax = plt.subplots(figsize=(8.5, 0.42 * len(halves) + 1.1), layout="constrained")
    ax.plot(values, [0] * len(values), "o", ms=6, color=OTHER, mec="white")
    for row, half in enumerate(halves.values(), start=1):
        ax.plot([mean - half, mean + half], [row, row], color=INK, lw=3)
        ax.plot(mean, row, "o", ms=7, color="white", mec=INK, mew=1.5)
        ax.text(mean + half + 0.06, row, f"± {half:.2f}", va="center")
    ax.axvline(0, color=INK, lw=1, ls=":")
    ax.set_yticks(range(len(halves) + 1), [f"{len(values)} differences", *halves])
    ax.set(xlabel="SCNet − plain twin, points of top-1", ylim=(len(halves) + 0.5, -0.5), xlim=(-1.8, 2.4))
    show(fig, alt)


def seeds_and_differences(accuracies: dict[str, dict[int, float]], compared: list, colours: dict[str, str]) -> Figure:
    """Left, a dot for the accuracy of every seed, the pairs of the first two kinds joined; right, what pairs differ by.

    accuracies: {label: {seed: share}}.  compared: (label, differences, interval for new seeds, interval for new seeds
    and pictures) of each comparison, shares too; intervals are (mean, low, high).
    """
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.6), layout="constrained", width_ratios=(1, 1.15))
        for row, (label, values) in enumerate(accuracies.items()):
            points = [100 * v for v in values.values()]
            left.plot(points, [row] * len(points), "o", ms=5, color=colours.get(label, OTHER), mec="white", mew=0.6)
            left.plot([sum(points) / len(points)] * 2, [row - 0.28, row + 0.28], color=INK, lw=1.5)
        first, second = list(accuracies.values())[:2]
        for seed in first.keys() & second.keys():
            left.plot([100 * first[seed], 100 * second[seed]], [0, 1], color=OTHER, lw=0.7, zorder=0)
        left.set_yticks(range(len(accuracies)), accuracies)
        left.set(title="every seed, and the mean", xlabel="top-1, %")
        _draw_differences(right, compared)
        right.legend(fontsize=8)
        left.invert_yaxis()
    return fig


def maps_by_hand(picture: Tensor, r: int = 4) -> dict[str, Tensor]:
    """The block's maps for one grey picture (H, W) in 0..1, with kernels set by hand so that each step can be seen.

    x1 is the picture, x2 its relief: two channels that a stem could give.  k2 averages and stretches the contrast, k3
    keeps edges, k4 and k1 smooth slightly.  Nothing here is trained.
    """
    def conv(x: Tensor, kernel: list[list[float]]) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), torch.tensor([[kernel]]))

    x1 = picture[None, None]
    x2 = conv(x1, [[-2., -1, 0], [-1, 0, 1], [0, 1, 2]])
    small = F.avg_pool2d(x1, r)
    k2 = conv(small, [[1 / 9] * 3] * 3)
    k2 = 4 * (k2 - k2.mean()) / k2.std() - 3
    wide = F.interpolate(k2, size=x1.shape[2:])
    gate = torch.sigmoid(x1 + wide)
    k3 = conv(x1, [[-1., -1, -1], [-1, 8, -1], [-1, -1, -1]]).abs()
    soft = [[1 / 16, 2 / 16, 1 / 16], [2 / 16, 4 / 16, 2 / 16], [1 / 16, 2 / 16, 1 / 16]]
    found = dict(x1=x1, small=small, k2=k2, wide=wide, gate=gate, k3=k3, gated=k3 * gate, y1=conv(k3 * gate, soft),
                 x2=x2, y2=conv(x2, soft))
    return {name: m[0, 0] for name, m in found.items()}


def block_diagram(maps: dict[str, Tensor], r: int = 4) -> Figure:
    """The self-calibrated convolution as a picture whose boxes are maps: see maps_by_hand for their names.

    All that belongs to the calibrated half is blue, all that belongs to the ordinary half orange.
    """
    fig = plt.figure(figsize=(10.4, 5.4), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 104), ylim=(0, 54))
    ax.set_axis_off()
    top, middle, bottom = 41, 23, 5                                  # the lower edges of the three lanes of maps
    side = 10.0
    tints = {colour: LinearSegmentedColormap.from_list("tint", ["black", colour, "white"]) for colour in (SC, PLAIN)}

    def tile(name, x, y, caption="", colour=SC, side=side, **limits):
        limits = {"cmap": tints[colour]} | limits
        ax.imshow(maps[name].detach(), extent=(x, x + side, y, y + side), zorder=2, aspect="auto",
                  interpolation="nearest", **limits)
        ax.add_patch(plt.Rectangle((x, y), side, side, fill=False, ec=colour, lw=1.8, zorder=3))
        ax.text(x + side / 2, y - 0.8, caption, ha="center", va="top", fontsize=9, color=colour)

    def channels(name, x, y, colour):
        """Half of a tensor's channels: a map, and others behind it."""
        for k in (2, 1):
            ax.add_patch(plt.Rectangle((x + 0.7 * k, y + 0.7 * k), 5.5, 5.5, fc="white", ec=colour, lw=1.4, zorder=2))
        tile(name, x, y, "", colour, 5.5)

    def arrow(start, end, label="", colour=SC, above=0.9):
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.5, color=colour, shrinkA=0,
                                     shrinkB=0, zorder=1))
        ax.text((start[0] + end[0]) / 2, max(start[1], end[1]) + above, label, ha="center", va="bottom", fontsize=9.5,
                weight="bold", color=colour)

    def joint(x, y, sign):
        ax.add_patch(Circle((x, y), 1.5, fc="white", ec=SC, lw=1.6, zorder=4))
        ax.text(x, y - 0.08, sign, ha="center", va="center", fontsize=12, color=SC, zorder=5)

    half, mid_top, mid_mid, mid_bot = side / 2, top + side / 2, middle + side / 2, bottom + side / 2
    # the input: its first channels are calibrated, the others are not
    channels("x1", 1, 21.5, SC)
    channels("x2", 1, 13, PLAIN)
    ax.text(4.4, 12.2, "x\nC × H × W", ha="center", va="top", fontsize=9)
    arrow((8.6, 25.5), (16, mid_mid))
    arrow((8.6, 16), (16, mid_bot + 2), colour=PLAIN)
    tile("x1", 16, middle, "x₁: half the channels\nC/2 × H × W")
    tile("x2", 16, bottom, "x₂: the other half", PLAIN)
    # the wide look
    ax.plot([16 + half, 16 + half], [middle + side, mid_top], color=SC, lw=1.5, zorder=1)
    arrow((16 + half, mid_top), (32, mid_top), f"average\npool {r}×{r}")
    tile("small", 32, top, f"C/2 × H/{r} × W/{r}")
    arrow((42, mid_top), (48, mid_top), "K₂\n3×3")
    tile("k2", 48, top, f"sees {3 * r}×{3 * r} px of x₁")
    arrow((58, mid_top), (65, mid_top), f"nearest\n×{r}")
    tile("wide", 65, top, "C/2 × H × W")
    arrow((75, mid_top), (78, mid_top))
    joint(79.5, mid_top, "+")
    arrow((81, mid_top), (91, mid_top), "sigmoid")
    tile("gate", 91, top, "gate\ndark 0, bright 1", vmin=0, vmax=1, cmap="viridis")
    # x1 itself also goes to the plus: a rail between the two upper lanes
    rail = middle + side + 3.2
    ax.plot([16 + half, 79.5], [rail, rail], color=SC, lw=1.5, zorder=1)
    arrow((79.5, rail), (79.5, mid_top - 1.6))
    ax.plot(16 + half, rail, "o", ms=4, color=SC)
    ax.text(50, rail + 0.5, "x₁ as it is", fontsize=9, color=SC, ha="center")
    # the middle lane: what the gate multiplies
    arrow((26, mid_mid), (40, mid_mid), "K₃  3×3")
    tile("k3", 40, middle, "K₃(x₁)")
    arrow((50, mid_mid), (55.2, mid_mid))
    joint(56.8, mid_mid, "×")
    ax.plot([101, 103, 103, 56.8], [mid_top, mid_top, rail - 2, rail - 2], color=SC, lw=1.5, zorder=1)
    arrow((56.8, rail - 2), (56.8, mid_mid + 1.6))
    arrow((58.4, mid_mid), (63, mid_mid))
    tile("gated", 63, middle, "K₃(x₁) · gate")
    arrow((73, mid_mid), (78.5, mid_mid), "K₄\n3×3")
    tile("y1", 78.5, middle, "y₁: calibrated")
    # the lower lane: an ordinary convolution
    arrow((26, mid_bot), (78.5, mid_bot), "K₁  3×3,  an ordinary convolution", PLAIN)
    tile("y2", 78.5, bottom, "y₂", PLAIN)
    # both halves side by side again
    arrow((88.5, mid_mid), (95, 25.5))
    arrow((88.5, mid_bot + 2), (95, 16), colour=PLAIN)
    channels("y1", 95.2, 21.5, SC)
    channels("y2", 95.2, 13, PLAIN)
    ax.text(98.6, 12.2, "y = [y₁, y₂]\nC × H × W", ha="center", va="top", fontsize=9)
    return fig


def ghost_diagram() -> Figure:
    """Which map is made from which in a Ghost module: four maps in, six out."""
    fig = plt.figure(figsize=(9, 2.9), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 90), ylim=(-1, 28))
    ax.set_axis_off()
    x, p, g = (20, 16, 12, 8), (24, 20, 16), (12, 8, 4)              # the rows

    def maps(left, rows, colour, symbol, caption, below=0.5):
        for i, row in enumerate(rows, start=1):
            ax.add_patch(plt.Rectangle((left, row - 1.5), 4, 3, fc=colour + "33", ec=colour, lw=1.4, zorder=2))
            ax.text(left + 2, row - 0.1, symbol.format(i), ha="center", va="center", fontsize=9, color=colour)
        ax.text(left + 2, rows[-1] - 1.5 - below, caption, ha="center", va="top", fontsize=9, color=colour)

    def lines(left, right, pairs, colour):
        for pair in pairs:
            ax.plot((left, right), pair, color=colour, lw=0.9, zorder=1)

    maps(4, x, INK, "$x_{}$", "4 maps in")
    maps(33, p, PLAIN, "$p_{}$", "3 primary maps")
    maps(57, g, GHOST, "$g_{}$", "3 ghosts")
    maps(75, p, PLAIN, "$p_{}$", "")
    maps(75, g, GHOST, "$g_{}$", "")
    ax.plot((80, 81, 81, 80), (p[0] + 1.5,) * 2 + (g[-1] - 1.5,) * 2, color=INK, lw=1.4)      # a bracket over all six
    ax.text(82, (p[0] + g[-1]) / 2, "6 maps out", va="center", fontsize=9, color=INK)
    lines(8, 33, [(a, b) for a in x for b in p], PLAIN)
    lines(37, 57, zip(p, g), GHOST)
    lines(37, 75, zip(p, p), PLAIN)
    lines(61, 75, zip(g, g), GHOST)
    ax.text(20, 25, "a full filter sees all four maps", ha="center", fontsize=9, weight="bold", color=PLAIN)
    ax.text(42, 4.5, "a cheap filter\nsees one map", ha="center", fontsize=9, weight="bold", color=GHOST)
    return fig


def bottleneck_diagram(sc: dict[str, tuple], plain: dict[str, tuple]) -> Figure:
    """ResNet's bottleneck above SCNet's, every map a square as wide as the map is: a stride is seen as a shrinking.

    sc, plain: (C, H, W) of the input, "x", and of what each module gives, by its name in SCBottleneck and in
    torchvision's Bottleneck.
    """
    fig = plt.figure(figsize=(10.75, 6.85), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 107.5), ylim=(-1, 67.5))
    ax.set_axis_off()
    scale = 9 / sc["x"][1]

    def tile(left, middle, shape, colour=INK, name="", below=True):
        """A square for a map, its left side at x = left; returns the x of its right side."""
        side = scale * shape[1]
        ax.add_patch(plt.Rectangle((left, middle - side / 2), side, side, fc=colour + "22", ec=colour, lw=1.6))
        if below:
            ax.text(left + side / 2, middle - side / 2 - 0.6, " × ".join(map(str, shape)), ha="center", va="top",
                    fontsize=8.5, color=colour)
        ax.text(left + side / 2, middle - 0.1, name, ha="center", va="center", fontsize=10, color=colour)
        return left + side

    def arrow(start, end, label="", colour=INK, below=False):
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.4, color=colour,
                                     shrinkA=0, shrinkB=0))
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + (-0.7 if below else 0.7), label, ha="center",
                va="top" if below else "bottom", fontsize=9, weight="bold", color=colour)

    def path(*points, colour=INK):
        ax.plot(*zip(*points), color=colour, lw=1.4, solid_joinstyle="miter")

    def joint(x, y, sign, colour=INK):
        ax.add_patch(Circle((x, y), 1.4, fc="white", ec=colour, lw=1.4, zorder=4))
        ax.text(x, y - 0.1, sign, ha="center", va="center", fontsize=11, color=colour, zorder=5)

    stride = sc["x"][1] // sc["conv3"][1]
    strided = f"3×3, stride {stride}" if stride > 1 else "3×3"

    def shortcut(y, above):
        path((6.5, y + 4.5), (6.5, above), (95, above))
        arrow((95, above), (95, y + 1.4))
        ax.text(87.5, above - 0.4, "shortcut" + (f": 1×1, stride {stride}" if stride > 1 else ""), ha="center",
                va="top", fontsize=9)

    # ResNet's
    row = 58
    ax.text(0.5, 67, "ResNet", fontsize=11, weight="bold", color=PLAIN, va="top")
    right = tile(2, row, plain["x"], name="x")
    arrow((right, row), (20, row), "1×1")
    right = tile(20, row, plain["conv1"], PLAIN)
    arrow((right, row), (72, row), strided, PLAIN)
    right = tile(72, row, plain["conv2"], PLAIN)
    arrow((right, row), (93.6, row), "1×1")
    joint(95, row, "+")
    shortcut(row, 64)
    arrow((96.4, row), (100, row))
    tile(100, row, plain["conv3"])
    # SCNet's: the two 1x1
    high, low, wide, join = 36, 22, 5.5, 29                          # the rows: K1's, calibrated, context, both
    ax.text(0.5, 46.5, "SCNet", fontsize=11, weight="bold", color=SC, va="top")
    right = tile(2, join, sc["x"], name="x")
    arrow((right, join + 1), (20, high), "", PLAIN)
    arrow((right, join - 1), (20, low), "", SC)
    ax.text(14, high - 1.5, "conv1_a\n1×1", ha="center", fontsize=9, weight="bold", color=PLAIN)
    ax.text(14, low + 1.5, "1×1\nconv1_b", ha="center", va="top", fontsize=9, weight="bold", color=SC)
    # the ordinary half
    right = tile(20, high, sc["conv1_a"], PLAIN, "x₂")
    arrow((right, high), (72, high), f"K₁  {strided}", PLAIN)
    ordinary = tile(72, high, sc["k1"], PLAIN)
    # the calibrated half: context below, detail above, their product
    right = tile(20, low, sc["conv1_b"], SC, "x₁", below=False)
    foot = low - (right - 20) / 2                                    # of x1's square: its shape stands inside
    ax.text((20 + right) / 2, foot + 0.5, " × ".join(map(str, sc["conv1_b"])), ha="center", fontsize=8, color=SC)
    arrow((right, low), (38, low), "K₃  3×3", SC)
    right = tile(38, low, sc["scconv.k3"], SC)
    arrow((right, low), (55.1, low), "", SC)
    turn = 24.5                                                      # where x1 branches off
    path((turn, foot), (turn, wide), (turn + 0.1, wide), colour=SC)
    arrow((turn, wide), (30, wide), "pool\n4×4", SC)
    right = tile(30, wide, sc["scconv.k2.0"], SC)
    arrow((right, wide), (39.5, wide), "K₂\n3×3", SC)
    right = tile(39.5, wide, sc["scconv.k2"], SC)
    arrow((right, wide), (45.1, wide), "up", SC)
    joint(46.5, wide, "+", SC)
    path((turn, 12), (46.5, 12), colour=SC)
    arrow((46.5, 12), (46.5, wide + 1.4), "", SC)
    ax.text(32, 12.8, "x₁", fontsize=9, weight="bold", color=SC, ha="center")
    arrow((47.9, wide), (52, wide), "σ", SC)
    right = tile(52, wide, sc["scconv.gate"], SC, "gate")
    arrow((56.5, wide + (right - 52) / 2), (56.5, low - 1.4), "", SC)
    joint(56.5, low, "×", SC)
    arrow((57.9, low), (72, low), f"K₄  {strided}", SC)
    calibrated = tile(72, low, sc["scconv.k4"], SC)
    # both halves, joined: in which order, the drawing does not tell
    both = (2 * sc["k1"][0], *sc["k1"][1:])
    right = tile(82.5, join, both, below=False)
    ax.text(83.5, join - scale * both[1] / 2 - 0.6, " × ".join(map(str, both)), va="top", fontsize=8.5, color=INK)
    arrow((ordinary, high), (82.5, join + 1), "", PLAIN)
    arrow((calibrated, low), (82.5, join - 1), "", SC)
    arrow((right, join), (93.6, join), "1×1")
    joint(95, join, "+")
    shortcut(join, 43.5)
    arrow((96.4, join), (100, join))
    tile(100, join, sc["conv3"])
    return fig


def detector_diagram(image: Tensor) -> Figure:
    """A two-stage detector over an image (3, H, W) in 0..1: backbone, pyramid, proposals, heads, from left to right."""
    fig = plt.figure(figsize=(10.4, 4.1), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 104), ylim=(0, 41))
    ax.set_axis_off()
    rows, sides = (5.5, 14.5, 23, 30), (8, 5.6, 3.8, 2.6)            # of the maps, from the finest to the coarsest

    def arrow(start, end, colour=INK, **style):
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, lw=1.3, color=colour, shrinkA=0,
                                     shrinkB=0, zorder=1, **style))

    def tile(middle, row, side, colour, text):
        ax.add_patch(plt.Rectangle((middle - side / 2, row - side / 2), side, side, fc=colour + "22", ec=colour, lw=1.5,
                                   zorder=2))
        ax.text(middle, row - 0.1, text, ha="center", va="center", fontsize=9, color=colour, zorder=3)

    def box(left, row, width, height, text):
        ax.add_patch(plt.Rectangle((left, row - height / 2), width, height, fc="white", ec=INK, lw=1.3, zorder=2))
        ax.text(left + width / 2, row - 0.1, text, ha="center", va="center", fontsize=8.5, zorder=3)

    for x, title, colour in ((24, "backbone", SC), (45, "pyramid", INK), (69, "proposals", INK), (93, "heads", INK)):
        ax.text(x, 38, title, ha="center", fontsize=11, weight="bold", color=colour)
    ax.text(24, 36, "without its last layer", ha="center", va="center", fontsize=8.5, color=SC)
    ax.imshow(image.permute(1, 2, 0), extent=(1, 14, rows[0] - 4, rows[0] + 9), aspect="auto", zorder=2)
    arrow((14, rows[0]), (24 - sides[0] / 2, rows[0]), SC)
    for i, (row, side) in enumerate(zip(rows, sides), start=2):      # i: the power of two in the stride
        tile(24, row, side, SC, f"$c_{i}$")
        tile(38, row, side, INK, f"$m_{i}$")
        tile(52, row, side, INK, f"$p_{i}$")
        for middle, text in ((31, "1×1"), (45, "3×3")):
            arrow((middle - 7 + side / 2, row), (middle + 7 - side / 2, row))
            ax.text(middle, row + 0.5, text, ha="center", fontsize=8)
        ax.text(19.5, row + 0.5, f"stride {2 ** i}", ha="right", va="bottom", fontsize=8, color=SC)
        if i > 2:
            below = rows[i - 3] + sides[i - 3] / 2
            arrow((24, below), (24, row - side / 2), SC)
            arrow((38, row - side / 2), (38, below))
            ax.text(38.6, (below + row - side / 2) / 2, "up", va="center", fontsize=8)
    ax.plot([56.9, 57.5, 57.5, 56.9], [3, 3, 31.5, 31.5], color=INK, lw=1.3)
    # the proposals, and what cuts them out
    arrow((57.5, 25), (61, 25))
    box(61, 25, 16, 9, "3 anchors at every pixel:\nobject or not?\nhow must it move?")
    arrow((69, 20.5), (69, 12))
    ax.text(68.3, 16.2, "the best,\nno duplicates", ha="right", va="center", fontsize=8)
    box(61, 8.5, 16, 7, "RoIAlign: cut each\nout of a level, on\na fixed grid")
    arrow((57.5, 8.5), (61, 8.5))
    ax.plot([77, 81, 81], [8.5, 8.5, 25], color=INK, lw=1.3, zorder=1)
    arrow((81, 25), (84, 25))
    for row, text in ((25, "class and better box"), (8.5, "mask")):
        box(84, row, 18, 5, text)
    arrow((93, 22.5), (93, 11))
    ax.text(92.3, 16.8, "RoIAlign again,\nfor this box", ha="right", va="center", fontsize=8)
    return fig
