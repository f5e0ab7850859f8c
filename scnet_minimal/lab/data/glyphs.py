"""The ten objects of Toynette, drawn, and the tools that draw them.

One function per class draws the object in a frame of its own, x to the right and y down, -100 to 100, its front to
the left, and returns its five keypoints: top, bottom, front, back, centre. A `Pen` carries that frame into the
image: stretched, tilted, rotated, mirrored. Points are written as in SVG: "x,y x,y x,y".
"""
import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

DARK, STEEL, WHITE, GLASS = (38, 38, 42), (176, 180, 186), (238, 236, 230), (150, 190, 212)


def hsv(h, s, v):
    """Hue, saturation and value in 0..1 -> three bytes."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h % 1, s, v))


def any_colour(rng, s=(0.35, 0.95), v=(0.35, 0.95)):
    return hsv(rng.random(), rng.uniform(*s), rng.uniform(*v))


def tone(colour, k):
    """The colour k times as bright; above 1 it moves towards white."""
    return tuple(round(c * k if k <= 1 else 255 - (255 - c) / k) for c in colour)


def xy(points):
    """"x,y x,y" or any (n, 2) -> (n, 2) float."""
    numbers = points.replace(",", " ").split() if isinstance(points, str) else points
    return np.asarray(numbers, float).reshape(-1, 2)


def smooth(points, closed=True, steps=6):
    """Catmull-Rom curve through n points -> about (n * steps, 2)."""
    p = xy(points)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    a, b, c, d = (p[i:len(p) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, steps, endpoint=not closed)[:, None]
    return (b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))).reshape(-1, 2)


def arc(x, y, rx, ry, start=0, stop=360, n=36):
    """Points on an ellipse, angles in degrees, clockwise from the right: (n, 2)."""
    t = np.radians(np.linspace(start, stop, n))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)


class Pen:
    """Draws in an object's frame, in colour (ink) and on the object's mask at once.

    x, y: where the middle of the frame lies on a canvas of side x side pixels; reach: half its width there. The frame
    is turned by up to `turn` degrees; `give` says how far proportions, shear and tilt may vary.
    """

    def __init__(self, rng, side, x, y, reach, turn=180, give=0.3, mirror=True):
        self.ink, self.mask = Image.new("RGB", (side, side)), Image.new("L", (side, side))
        self.layers = ImageDraw.Draw(self.ink), ImageDraw.Draw(self.mask)
        self.edge = rng.choice([0, 1.5, 3])                       # the darker line around filled shapes
        a, (sx, sy, shear) = math.radians(rng.uniform(-turn, turn)), rng.uniform(0, give, 3)
        self.warp = give * rng.uniform(-25, 25, 2), rng.uniform(0, 2 * math.pi, 2)   # parts grow and shrink
        turned = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        mirrored = np.diag([-1 if mirror and rng.random() < 0.5 else 1, 1])
        self.matrix = turned @ mirrored @ [[1 - sx, shear - give / 2], [0, 1 - sy]] * reach / 100
        self.centre, self.tilt = np.array([x, y]), give * rng.uniform(-0.5, 0.5, 2) / 100
        self.scale = math.sqrt(abs(np.linalg.det(self.matrix)))

    def at(self, points):
        """Points of the frame -> n pairs of pixels on the canvas."""
        p = xy(points)
        p = p + self.warp[0] * np.sin(0.025 * p + self.warp[1])
        p = p @ self.matrix.T / (1 + p @ self.tilt)[:, None] + self.centre
        return [*map(tuple, p.tolist())]

    def line(self, points, width, colour):
        p, w = self.at(points), max(1, round(width * self.scale))
        for layer, fill in zip(self.layers, (colour, 255)):
            layer.line(p, fill, w, joint="curve")
            for x, y in (p[0], p[-1]) if w > 3 else ():           # round ends
                layer.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill)

    def curve(self, points, width, colour):
        self.line(smooth(points, closed=False), width, colour)

    def tube(self, points, width, colour):
        """A round pipe: dark rim, colour, light along the middle."""
        for w, k in ((1, 0.45), (0.72, 1), (0.22, 2.2)):
            self.line(points, width * w, tone(colour, k))

    def poly(self, points, colour, edge=None):
        p, outline = xy(points), self.at(points)
        for layer, fill in zip(self.layers, (colour, 255)):
            layer.polygon(outline, fill)
        if edge := self.edge if edge is None else edge:
            self.line(np.concatenate([p, p[:2]]), edge, tone(colour, 0.5))

    def blob(self, points, colour, edge=None):
        self.poly(smooth(points), colour, edge)

    def oval(self, x, y, rx, ry, colour, edge=None, turn=0):
        c, s, n = math.cos(turn), math.sin(turn), int(np.clip(rx * self.scale, 12, 48))
        self.poly(arc(0, 0, rx, ry, n=n) @ [[c, s], [-s, c]] + [x, y], colour, edge)

    def box(self, x0, y0, x1, y1, colour, r=0.01, edge=None):
        corners = (x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270)
        self.poly(np.concatenate([arc(x, y, r, r, a, a + 90, 5) for x, y, a in corners]), colour, edge)

    def spokes(self, x, y, r0, r1, n, width, colour, start=0):
        for ray in arc(0, 0, 1, 1, start, start + 360 - 360 / n, n):
            self.line([(x, y) + r0 * ray, (x, y) + r1 * ray], width, colour)


def tench(pen, rng):
    u = rng.uniform
    back = hsv(u(0.1, 0.27), u(0.45, 0.75), u(0.34, 0.6))
    fin = tone(back, 0.62)
    for shape in ("58,-7 80,-26 98,-37 93,-10 90,2 93,12 98,38 80,27 58,9",
                  "-20,-24 -12,-50 6,-56 24,-42 32,-12", "30,10 36,44 50,44 54,6", "-20,22 -12,49 2,50 8,22"):
        pen.blob(shape, fin)
        root = xy(shape)[[0, -1]].mean(0)
        for tip in smooth(xy(shape)[1:-1], closed=False, steps=3):   # the rays of the fin
            pen.line([root * 0.6 + tip * 0.4, root * 0.08 + tip * 0.92], 1.2, tone(fin, 0.6))
    pen.blob("-95,3 -82,-13 -50,-30 -10,-32 30,-22 66,-9 66,10 30,22 -10,32 -50,30 -84,18", back)
    pen.blob("62,7 30,19 -10,28 -50,26 -80,15 -40,12", hsv(u(0.11, 0.16), u(0.4, 0.65), u(0.75, 0.9)), 0)
    for x in range(-36, 60, 11):
        for row in range(-3, 4):
            y = row * 7.5 * (1 - max(0, x) / 130)                 # scales
            pen.line(arc(x + 5 * (row % 2), y, 4.5, 5, -80, 80, 6), 1.2, tone(back, 0.7))
    pen.curve("-50,-26 -42,0 -52,26", 3, tone(back, 0.5))          # gill, side fin, eye, mouth
    pen.blob("-40,8 -20,10 -10,24 -30,22", fin)
    pen.oval(-72, -7, 7, 7, hsv(u(0.03, 0.13), 0.85, 0.95))
    pen.oval(-72, -7, 3.8, 3.8, DARK, 0)
    pen.line("-95,7 -82,9", 2.5, tone(back, 0.4))
    return "4,-38 -20,28 -88,3 84,2 -5,0"


def springer(pen, rng):
    u = rng.uniform
    coat = hsv(u(0.02, 0.07), u(0.5, 0.75), u(0.28, 0.5)) if rng.random() < 0.6 else tone(DARK, u(0.8, 1.15))
    white, step, h = tone(WHITE, u(0.88, 1.3)), u(-10, 10), u(-8, 10)   # h: how the head is held

    def leg(x, y, dx, colour, hind=0):
        top = [(x - 13 - hind, y), (x + 12, y), (x + 13 + hind / 2, y + 25)]
        foot = xy(f"{6 + hind},55 5,82 4,90 -16,90 -8,78 {hind / 2 - 7},50") + [x + dx, 0]
        pen.blob(np.concatenate([top, foot]), colour)

    leg(-22, 5, -step, tone(white, 0.72))
    leg(44, -2, step, tone(white, 0.72), 10)
    pen.blob(f"60,-20 74,-36 94,{h - 50} 98,{h - 40} 84,-20 66,-2", coat)
    pen.blob("-50,-30 -15,-24 30,-26 62,-24 72,0 60,20 30,16 10,24 -5,22 -18,32 -40,30 -58,5", white)
    for _ in range(rng.integers(20, 50)):                         # ticking: small spots
        pen.oval(u(-45, 55), u(-15, 15), 1.2, 1.2, tone(coat, 1.2), 0)
    pen.blob(f"-34,-26 8,-26 {24 + h},-20 16,0 -10,{8 + h} -32,-2", coat, 0)
    leg(56, -8, -step, white, 10)
    pen.blob("40,-25 62,-23 71,2 60,18 42,8", coat, 0)
    leg(-40, 6, step, white)
    pen.blob("-68,-42 -44,-60 -30,-40 -16,-22 -30,5 -52,10 -62,-10", white)   # neck
    pen.blob("-50,-60 -42,-58 -28,-40 -14,-24 -34,-10 -50,-35", coat, 0)
    pen.blob(f"-66,{h - 78} -78,{h - 64} -96,{h - 58} -99,{h - 46} -88,{h - 38} -66,-36 -46,-42 -42,-66 -52,-78", white)
    pen.blob(f"-64,{h - 77} -74,{h - 64} -70,-48 -50,-42 -42,-60 -52,-77", coat, 0)
    pen.oval(-97, h - 54, 4.5, 4, DARK)
    pen.line([(-94, h - 44), (-78, h - 43)], 2, DARK)
    pen.oval(-70, h * 0.7 - 62, 3.5, 3.5, DARK, 1.5)
    pen.blob("-58,-68 -45,-66 -36,-40 -34,-18 -42,-8 -52,-10 -57,-22 -60,-45", tone(coat, 0.8), 3)   # ear
    for x in (-52, -46, -41):
        pen.curve([(x - 3, -50), (x + 1, -30), (x - 1, -16)], 1.2, tone(coat, 1.25))
    for x in range(-30, 36, 6):                                   # long hair at the belly and the legs
        pen.line([(x, 18), (x + 5, 32 + u(-3, 3))], 3.5, white)
    for x, y in [(x, y) for y in range(20, 66, 7) for x in (step - 33, 68 - step)]:
        pen.line([(x, y), (x + 0.09 * (100 - y), y + 10)], 3.5, white)
    return [(-58, -72), (-43, 80), (-94, h - 50), (84, h / 2 - 32), (5, -5)]


def cassette_player(pen, rng):
    u, h, boombox = rng.uniform, rng.uniform(46, 62), rng.random() < 0.65
    shell = any_colour(rng) if rng.random() < 0.5 else tone(STEEL, u(0.3, 1.5))
    panel = tone(shell, u(0.5, 0.75))
    w, x = (98, 0) if boombox else (u(72, 90), u(-15, 0))         # x: where the tape sits
    if rng.random() < 0.7:
        pen.line(xy("-75,0 -70,-26 70,-26 75,0") * [w / 100, 1] - [0, h], 8, tone(shell, 0.6))
    pen.box(-w, -h, w, h, shell, 8)
    pen.box(6 - w, 5 - h, w - 6, 17 - h, WHITE, 2, 1.2)           # tuning scale
    for t in (*np.linspace(14 - w, w - 14, 16), needle := u(20 - w, w - 20)):
        pen.line([(t, 8 - h), (t, 14 - h)], *(2.5, (220, 40, 30)) if t == needle else (1.2, DARK))
    if boombox:                                                   # loudspeakers, or a grille of slits
        for k, colour in ((1, panel), (0.86, DARK), (0.6, tone(DARK, 1.25)), (0.25, tone(STEEL, 0.8))):
            pen.oval(-67, 10, k * min(27, h * 0.56), k * min(27, h * 0.56), colour)
            pen.oval(67, 10, k * min(27, h * 0.56), k * min(27, h * 0.56), colour)
    else:
        for y in np.linspace(30 - h, h - 20, 7):
            pen.line([(x + 48, y), (w - 10, y)], 3.5, DARK)
    pen.box(x - 37, 24 - h, x + 37, h - 20, panel, 4)             # the tape behind its window
    s, wound, spin = (h - 22) * 0.66, u(9, 15), u(0, 60)
    pen.box(x - 32, 2 - s, x + 32, 2 + s, tone(any_colour(rng), 1.4), 3)
    pen.box(x - 29, 2 - s * 0.55, x + 29, 2 + s * 0.62, DARK, 3)
    for rx, r in ((x - 15.5, wound), (x + 15.5, 24 - wound)):
        pen.oval(rx, 2, r, r, (92, 62, 44), 1)
        pen.oval(rx, 2, 8.5, 8.5, WHITE, 1)
        pen.spokes(rx, 2, 3, 7, 6, 2, DARK, spin)
    n = rng.integers(5, 8)
    for i in range(n):
        left = x - 37 + 74 / n * i
        pen.box(left + 1, h - 16, left + 74 / n - 1, h - 5, tone(STEEL, 1.4) if i else (205, 50, 40), 1, 1.2)
    return [(0, 3 - h), (0, h - 3), (4 - w, 0), (w - 4, 0), (x, 2)]


def chain_saw(pen, rng):
    u, w, tip, y = rng.uniform, rng.uniform(7.5, 11), rng.uniform(-96, -80), rng.uniform(2, 12)   # the bar
    shell = hsv(rng.choice([0, 0.03, 0.07, 0.1, 0.15, 0.33, 0.58]), u(0.75, 0.95), u(0.65, 0.95))
    rim = np.concatenate([np.linspace((10, y - w), (tip + w, y - w), 19), arc(tip + w, y, w, w, -90, -270, 9),
                          np.linspace((tip + w, y + w), (10, y + w), 19)])
    out = np.stack([np.minimum(0, rim[:, 0] - tip - w), rim[:, 1] - y], 1)
    out /= np.linalg.norm(out, axis=1, keepdims=True)             # away from the bar, and along the chain
    along = out[:, ::-1] * [1, -1]
    teeth = np.stack([rim + out * 2, rim + out * 7.5 + along * 3, rim + out * 7 + along * 4.5], 1)
    pen.poly(teeth.reshape(-1, 2), DARK, 0)
    pen.poly(rim - out * 2, tone(STEEL, u(1.1, 1.8)), 1.2)
    pen.line([(tip + 30, y), (-20, y)], 3, tone(STEEL, 0.75))
    pen.oval(tip + w, y, 2.5, 2.5, DARK, 0)
    pen.curve("52,-20 75,-26 93,-12 95,12 84,28 55,27", 12, tone(DARK, 1.1))   # rear handle
    pen.line("68,-14 73,-2", 4, (200, 40, 30))
    pen.blob("-5,-12 5,-26 30,-33 55,-28 64,-5 62,28 40,36 2,33 -8,15", shell)
    pen.poly([(-6, y - 12), (20, y - 16), (24, y + 18), (-4, y + 17)], tone(shell, 0.7))
    pen.oval(7, y, 3.5, 3.5, STEEL, 1.2)
    pen.oval(42, 6, 17, 17, tone(DARK, 1.1))                      # starter
    pen.spokes(42, 6, 6, 14, 8, 2.8, tone(STEEL, 0.7))
    pen.box(12, -26, 42, -16, tone(shell, 1.7), 3, 0)
    pen.poly("-10,-10 -17,-50 -8,-53 3,-16", tone(DARK, 1.15))    # hand guard, front handle
    pen.curve("8,18 0,-20 10,-52 32,-56 46,-28", 7.5, tone(DARK, 0.9))
    return [(20, -56), (30, 30), (tip + 6, y), (94, 2), (30, 0)]


def church(pen, rng):
    u = rng.uniform
    wall = (tone(WHITE, u(0.85, 1.2)), hsv(u(0.08, 0.13), u(0.1, 0.4), u(0.6, 0.85)),
            hsv(u(0.01, 0.05), u(0.4, 0.65), u(0.5, 0.7)))[rng.integers(3)]
    roof, gold = hsv(rng.choice([0.02, 0.07, 0.45, 0.6]), u(0.15, 0.6), u(0.3, 0.55)), (230, 190, 90)
    pane, cross = (GLASS, DARK, gold)[rng.integers(3)], (DARK, gold)[rng.integers(2)]
    door, tip, eaves, w = hsv(u(0.03, 0.09), 0.6, u(0.3, 0.5)), u(-78, -70), u(-25, -5), u(20, 26)

    def lancet(x, foot, half, height, colour, edge=2):            # a pointed window or door
        arch = xy("-10,0 -10,-6 -6,-8.5 0,-10 6,-8.5 10,-6 10,0")
        pen.poly(arch * [half / 10, height / 10] + [x, foot], colour, edge)

    if rng.random() < 0.5:                                        # from the side: tower, then nave
        x, left, right, ridge = -55, -70, 86, u(-12, 8)
        pen.box(-40, 30, 92, 92, wall)
        pen.poly([(-42, 34), (-38, ridge), (84, ridge), (98, 34)], roof)
        for wx in np.linspace(-12, 76, rng.integers(3, 6)):
            lancet(wx, 80, 7.5, 36, pane)
    else:                                                         # from the front: the tower before a gable
        x, b = 0, u(60, 80)
        left, right = 5 - b, b - 5
        pen.poly([(-b, 92), (-b, 38), (0, -15), (b, 38), (b, 92)], wall)
        for s in (-1, 1):
            pen.poly([(s * (b + 8), 46), (0, -12), (0, -26), (s * (b + 8), 34)], roof)
            lancet(s * (w + b) / 2, 80, 8, 36, pane)
    pen.box(x - w, eaves, x + w, 92, tone(wall, 1.15))
    pen.poly([(x - w - 5, eaves + 2), (x, tip), (x + w + 5, eaves + 2)], roof)   # spire and cross
    pen.poly([(x, eaves + 2), (x, tip), (x + w + 5, eaves + 2)], tone(roof, 0.75), 0)
    pen.line([(x, tip + 3), (x, tip - 24)], 5, cross)
    pen.line([(x - 9, tip - 14), (x + 9, tip - 14)], 5, cross)
    lancet(x - 0.45 * w, eaves + 30, 5.5, 22, DARK, 1.2)
    lancet(x + 0.45 * w, eaves + 30, 5.5, 22, DARK, 1.2)
    pen.oval(x, eaves + 42, 8.5, 8.5, (WHITE, pane)[rng.integers(2)])   # clock or rose
    pen.line([(x, eaves + 37), (x, eaves + 42), (x + 4, eaves + 44)], 1.4, DARK)
    lancet(x, 92, 12, 36, door, 3)
    pen.line([(x, 62), (x, 90)], 1.4, tone(door, 0.5))
    return [(x, tip + 8), (x, 88), (left, 70), (right, 70), (x, 30)]


def french_horn(pen, rng):
    u = rng.uniform
    brass = hsv(u(0.09, 0.145), u(0.55, 0.8), u(0.72, 0.95)) if rng.random() < 0.8 else tone(STEEL, u(1, 1.5))
    x, y, r, thick = -12, -12, u(50, 58), u(8.5, 10.5)
    pen.tube(smooth([(-97, -62), (-72, -72), (-40, y - r), (x, y - r)], False), thick * 0.75, brass)
    pen.poly("-100,-70 -90,-67 -86,-62 -90,-58 -96,-53", tone(STEEL, 1.3))   # mouthpiece
    pen.tube(arc(x + 5, y + 2, r * 0.76, r * 0.74), thick * 0.85, brass)
    pen.tube(arc(x - 2, y - 2, r * 0.55, r * 0.52, 30, 330), thick * 0.75, brass)
    for dx in (-14, 0, 14):                                       # slides, then three valves with levers
        pen.tube(smooth(xy("-4,5 -4,30 4,30 4,5") + [x + dx, y], False), thick * 0.6, brass)
    for vx in (x - 20, x, x + 20):
        pen.line([(vx, y), (vx - 12, y - 26)], 3, tone(STEEL, 0.8))
        pen.oval(vx - 13, y - 27, 6, 3.5, tone(STEEL, 1.6), 1.2)
        pen.oval(vx, y, 10, 10, brass, 2.5)
        pen.oval(vx, y, 5.5, 5.5, tone(STEEL, 1.4), 1.2)
    a, flare, k, mouth = u(0.2, 0.75), u(36, 44), u(0.4, 0.62), np.array([56, 50])   # the bell: k, towards us
    d = np.array([math.cos(a), math.sin(a)])
    path = np.concatenate([arc(x, y, r, r, 330, 90, 30), smooth([(x, y + r), mouth - 42 * d, mouth], False, 14)[2:]])
    half = thick / 2 + (flare - thick / 2) * np.linspace(-0.72, 1, len(path)).clip(0)[:, None] ** 4.2
    side = np.gradient(path, axis=0)[:, ::-1] * [-1, 1]
    side = side / np.linalg.norm(side, axis=1, keepdims=True) * half
    pen.poly(np.concatenate([path + side, (path - side)[::-1]]), brass)
    pen.line(path + side * 0.35, 2.5, tone(brass, 2.2))
    pen.line(path - side * 0.6, 2, tone(brass, 0.75))
    for size, dark in ((1, 1), (0.88, 0.72), (0.6, 0.5), (0.3, 0.25)):
        pen.oval(*(mouth - 5 * (1 - size) * d), flare * k * size, flare * size, tone(brass, dark), turn=a)
    return [(x, y - r), (x, y + r), (-93, -62), mouth, (x, y)]


def garbage_truck(pen, rng):
    top, roof = rng.uniform(-62, -48), rng.uniform(-36, -24)
    cab = any_colour(rng, (0.4, 0.95), (0.5, 0.95)) if rng.random() < 0.7 else WHITE
    body = (cab, any_colour(rng, (0.3, 0.9), (0.4, 0.85)), tone(WHITE, 0.9))[rng.integers(3)]
    pen.box(-90, 30, 72, 46, DARK)
    pen.poly([(-42, 36), (-44, top + 6), (-38, top), (50, top), (52, 36)], body)
    for x in np.linspace(-32, 44, rng.integers(4, 7)):
        pen.line([(x, top + 6), (x, 30)], 2.5, tone(body, 0.7))
    pen.box(-42, 14, 52, 22, WHITE if cab == body else tone(cab, 0.8), edge=0)
    sign = WHITE if sum(body) < 480 else (30, 130, 60)
    for a in np.radians((0, 120, 240)):                           # three arrows that chase each other
        c, s, middle = math.cos(a), math.sin(a), (6, top / 2 + 8)
        pen.line(xy("-16,6 -7,-11 5,-11") @ [[c, s], [-s, c]] + middle, 5, sign)
        pen.poly(xy("3,-19 13,-10 3,-3") @ [[c, s], [-s, c]] + middle, sign, 0)
    pen.poly([(48, top - 4), (68, top), *xy("86,-12 80,2 96,12 96,34 84,44 50,40")], tone(body, 0.72))
    pen.poly("66,-20 82,-10 78,3 93,13 90,22 66,20", tone(DARK, 0.7), 0)
    for x, y, r in ((72, 14, 9), (86, 12, 8.5), (78, 6, 7.5)):    # bags in the hopper
        bag = ((40, 44, 52), (60, 62, 74), (30, 70, 50), (200, 200, 205))[rng.integers(4)]
        pen.oval(x, y, r, r * 0.9, bag, 1.5)
        pen.poly([(x - 3, y - r - 4), (x, y - r + 2), (x + 3, y - r - 4)], bag, 1)
    pen.tube([(56, top + 12), (80, -6)], 6, STEEL)
    pen.poly([(-95, 42), (-97, 4), (-90, roof), (-48, roof), (-46, 42)], cab)
    pen.poly([(-92, 2), (-86, roof + 6), (-54, roof + 6), (-54, 2)], GLASS)
    pen.line([(-78, roof + 6), (-80, 30)], 2, tone(cab, 0.5))
    pen.oval(-92, 20, 3.5, 5, (255, 240, 170), 1.5)
    pen.box(-99, 34, -50, 44, tone(STEEL, 0.6), 3)
    pen.box(-76, roof - 8, -64, roof, (250, 150, 30), 3, 1.2)
    for x in (-68, 20, 56) if rng.random() < 0.6 else (-68, 42):
        pen.oval(x, 46, 17, 17, DARK)
        pen.oval(x, 46, 8.5, 8.5, STEEL, 1.5)
    return [(5, top + 3), (-68, 58), (-93, 10), (93, 30), (5, 18)]


def gas_pump(pen, rng):
    u, w, x, top, low = rng.uniform, rng.uniform(36, 46), -22, -72, rng.uniform(55, 80)
    shell, trim = any_colour(rng, (0.5, 0.95), (0.45, 0.95)), any_colour(rng) if rng.random() < 0.4 else WHITE
    if rng.random() < 0.4:                                        # an old one wears a lamp, a new one a sign
        pen.oval(x, top - 10, 20, 18, tone(WHITE, 1.2))
        pen.oval(x, top - 10, 11, 10, shell, 1.2)
    else:
        pen.box(x - w - 5, top - 20, x + w + 5, top, trim, 3)
        pen.box(x - w + 10, top - 14, x + w - 10, top - 6, shell, edge=0)
    hose = [(x + w - 5, 45), (x + w + 14, low + 6), (62, low), (78, 20), (76, -20), (64, -36)]
    pen.curve(hose, 8.5, tone(DARK, u(0.7, 1.1)))
    pen.box(x - w, top, x + w, 88, shell, 5)
    pen.box(x - w - 8, 84, x + w + 8, 97, tone(DARK, 1.2), 2)
    pen.box(x - w + 6, top + 7, x + w - 6, -8, trim, 3)
    screen, digit = (((205, 225, 190), DARK), (DARK, (230, 70, 40)), ((225, 235, 240), DARK))[rng.integers(3)]
    for y, n in ((top + 14, 4), (top + 37, 3)):                   # litres and price, in seven segments
        pen.box(x - w + 12, y, x + w - 12, y + 18, screen, 1, 1.5)
        for dx in np.linspace(x - w + 20, x + w - 26, n):
            p = xy("0,5 0,0 7,0 7,5 7,10 0,10 0,5 7,5") + [dx, y + 4]
            for i in np.flatnonzero(rng.random(7) < 0.8):
                pen.line(p[i:i + 2], 2.2, digit)
    pen.blob(xy("0,10 13,36 10,50 0,55 -10,50 -13,36") + [x, 0], trim, 1.5)   # a drop
    pen.box(x + w - 2, -50, x + w + 12, 0, tone(DARK, 1.25), 2)   # holster, nozzle, its lever
    grip = ((200, 40, 35), (40, 140, 70), (45, 45, 50), (235, 190, 50))[rng.integers(4)]
    pen.line([(60, -36), (x + w + 16, -50), (x + w + 5, -34)], 6, STEEL)
    pen.blob("36,-50 56,-52 74,-40 82,-12 72,-8 60,-28 38,-36", grip)
    pen.curve("44,-36 48,-16 68,-14", 3.5, tone(grip, 0.6))
    return [(x, top + 3), (x, 92), (x - w + 4, 30), (66, -38), (x, 30)]


def golf_ball(pen, rng):
    u, tee = rng.uniform, rng.random() < 0.45
    y, r = (-24, 74) if tee else (0, u(80, 97))
    skin = tone(WHITE, u(0.95, 1.4)) if rng.random() < 0.85 else hsv(u(0.12, 0.22), u(0.3, 0.7), 1)
    if tee:
        wood = any_colour(rng)
        pen.poly("-24,42 24,42 9,58 5,98 -5,98 -9,58", wood)
        pen.oval(0, 42, 24, 6, tone(wood, 0.7))
    light = np.array([u(-0.35, 0.35), u(-0.45, -0.2), 0.75])      # where it comes from
    for k in np.linspace(0, 1, 10):                               # from the shaded rim to the lit middle
        pen.oval(light[0] * r * k, y + light[1] * r * k, r * (1 - 0.72 * k), r * (1 - 0.72 * k),
                 tone(skin, 0.58 + 0.42 * k ** 0.6), 0 if k else None)
    n = int(u(170, 280))                                          # dimples, evenly over a sphere
    z, a = 1 - (2 * np.arange(n) + 1) / n, math.pi * (1 + 5 ** 0.5) * np.arange(n)
    ball = np.stack([np.sqrt(1 - z * z) * np.cos(a), np.sqrt(1 - z * z) * np.sin(a), z], 1)
    ball, d = ball @ np.linalg.qr(rng.normal(size=(3, 3)))[0], 1.35 / math.sqrt(n)
    for p in ball[ball[:, 2] > 0.2]:                              # dark near the light, paler on the far wall
        shade, turn = 0.52 + 0.4 * max(0, p @ light), math.atan2(p[1], p[0])
        for q, size, k in ((p, d, shade), (p - 0.5 * d * light, 0.66 * d, shade + 0.1)):
            pen.oval(r * q[0], y + r * q[1], r * size * p[2], r * size, tone(skin, k), 0, turn)
    return [(0, y - r * 0.93), (0, y + r * 0.93), (-r * 0.93, y), (r * 0.93, y), (0, y)]


def parachute(pen, rng):
    u, n = rng.uniform, rng.integers(6, 12)
    rx, top, rim, sag, hang = u(80, 98), -97, u(-38, -16), u(2, 16), u(42, 52)
    colours = [any_colour(rng, (0.5, 0.95), (0.55, 1)) for _ in range(rng.integers(1, 4))] + [tone(WHITE, u(0.9, 1.3))]
    foot = -np.cos(np.linspace(0, math.pi, n + 1)) * rx           # where the seams meet the rim
    foot = np.stack([foot, rim + sag * (1 - (foot / rx) ** 2)], 1)
    for x, y in foot:
        pen.line([(x, y), (5 * np.sign(x), hang)], 1.4, tone(DARK, u(0.8, 1.6)))
    pen.blob(foot[::-1], tone(colours[0], 0.45), 0)               # the inside, in shadow
    t = np.linspace(0, math.pi / 2, 12)
    seam = np.stack([np.sin(t), 1 - np.cos(t)], 1)                # from the top, (0, 0), to the rim, (1, 1)
    for i in range(n):
        left, right = ([0, top] + (f - [0, top]) * seam for f in foot[i:i + 2])
        hem = smooth([foot[i], foot[i:i + 2].mean(0) - [0, 5], foot[i + 1]], closed=False)
        cloth = tone(colours[i % len(colours)], 1.05 - 0.35 * i / n)
        pen.poly(np.concatenate([left, hem, right[::-1]]), cloth, 1.8)
    suit = any_colour(rng)
    if rng.random() < 0.75:                                       # a jumper, else a crate
        for s, swing in ((-1, u(-6, 6)), (1, u(-6, 6))):
            pen.line([(s * 5, hang + 15), (s * 10, hang + 6), (s * 5, hang - 6)], 4.5, suit)
            knee, heel = (s * 7 + swing, hang + 40), (s * 6 + swing, hang + 48)
            pen.line([(s * 3.5, hang + 28), knee, heel], 6, tone(suit, 0.6))
        pen.box(-8.5, hang + 9, 8.5, hang + 31, suit, 3)
        pen.oval(0, hang + 3, 6.5, 7, hsv(0.07, u(0.3, 0.6), u(0.45, 0.95)))
    else:
        pen.box(-16, hang, 16, hang + 30, hsv(0.09, 0.5, u(0.5, 0.8)))
        pen.line([(0, hang), (0, hang + 30)], 3, DARK)
        pen.line([(-16, hang + 15), (16, hang + 15)], 3, DARK)
    return [(0, top + 8), (0, hang + 20), (-rx * 0.85, rim - 10), (rx * 0.85, rim - 10), (0, rim - 20)]


# In the order of CLASSES: the function, the largest turn in degrees, how far proportions give, and whether to mirror.
# What looks the same in a mirror is not mirrored, so that its front stays on one side.
GLYPHS = ((tench, 28, 0.18, True), (springer, 12, 0.12, True), (cassette_player, 18, 0.15, True),
          (chain_saw, 35, 0.15, True), (church, 6, 0.18, True), (french_horn, 30, 0.1, True),
          (garbage_truck, 10, 0.12, True), (gas_pump, 8, 0.15, True), (golf_ball, 15, 0.03, False),
          (parachute, 22, 0.18, False))
