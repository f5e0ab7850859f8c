"""The page notebooks/explore.html: what the command writes, PyTorch's answers, and a game that can be played.

Its networks and its game run in a real browser: skipped without playwright or without a Chromium on this machine.
"""
import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scnet_minimal.lab import zoo
from scnet_minimal.lab.study import __main__ as study
from scnet_minimal.lab.study import count, dots, explore
from scnet_minimal.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "explore.html"
INSIDE = re.compile(r'(<script type="application/json" id="networks">)(.*?)(</script>)')
# Runs a network of the page on pictures, float32 as base64, and returns the logits in the same form.
FORWARD = """([id, off, pictures]) => {
    const bytes = Uint8Array.from(atob(pictures), c => c.charCodeAt(0)), x = new Float32Array(bytes.buffer);
    const y = new Float32Array(x.length), n = 3 * 24 * 24;
    for (let i = 0; i < x.length; i += n)
        y.set(run(BLOCKS[id], {c: 3, h: 24, w: 24, d: Float64Array.from(x.slice(i, i + n))}, off).at(-1).d, i);
    const out = new Uint8Array(y.buffer), parts = [];
    for (let i = 0; i < out.length; i += 8192) parts.push(String.fromCharCode(...out.slice(i, i + 8192)));
    return btoa(parts.join(''));
}"""
DOT = "() => state.dots.map(d => [d.row, d.column, d.colour])"


def trained(block: str) -> nn.Module:
    net = dots.network(dots.BLOCKS[block].make())
    net.load_state_dict(read_weights(zoo.trained(f"dots_{block}")))
    return net.eval()


@pytest.fixture
def open_page(browser):
    """open_page(width=1200, touch=False): the page, without a network.  An error of its own fails the test."""
    contexts, errors = [], []

    def open_one(width=1200, touch=False):
        contexts.append(browser.new_context(viewport={"width": width, "height": 844}, has_touch=touch, offline=True))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(PAGE.as_uri())
        page.wait_for_function("() => shown !== null && document.getElementById('note').textContent !== ''")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not errors


def answers(page) -> list[int]:
    """The labels that the page shows at the four pixels of the first dot."""
    settle(page)
    return page.evaluate("() => pixels(state.dots[0]).map(p => shown.y[p])")


def settle(page) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("() => !waiting && !others")        # the eight small pictures too


def test_the_page_is_what_the_command_writes(tmp_path):
    made = tmp_path / "page.html"
    assert study.main(["explore", "--out", str(made)]) == 0
    kept, made = PAGE.read_text(encoding="utf-8"), made.read_text(encoding="utf-8")
    assert INSIDE.sub(r"\1\3", kept) == INSIDE.sub(r"\1\3", made)
    kept, made = json.loads(INSIDE.search(kept)[2]), json.loads(INSIDE.search(made)[2])
    assert kept["blocks"] == made["blocks"]
    kept, made = (np.frombuffer(base64.b64decode(page["weights"]), "<f4") for page in (kept, made))
    np.testing.assert_allclose(kept, made, rtol=1e-6, atol=1e-7)


def test_the_page_is_small_and_asks_for_nothing():
    text = PAGE.read_text(encoding="utf-8")
    assert PAGE.stat().st_size <= 200_000
    assert not re.findall(r"https?:|//[a-z]+\.|<link|\bsrc=|\bimport\b|\burl\(|fetch\(", INSIDE.sub("", text))


def test_a_module_without_a_step_is_named():
    with pytest.raises(TypeError, match="MaxPool2d"):
        explore.Program(nn.Sequential(nn.MaxPool2d(2)).eval(), [])


@pytest.mark.slow
def test_its_networks_answer_as_in_pytorch(open_page):
    page, (pictures, _) = open_page(), dots.make_pictures(200, seed=123)

    @torch.inference_mode()
    def check(block, net, x, off):
        sent = base64.b64encode(x.numpy().astype("<f4").tobytes()).decode()
        found = base64.b64decode(page.evaluate(FORWARD, [block, off, sent]))
        found = torch.from_numpy(np.frombuffer(found, "<f4").copy()).view_as(x)
        torch.testing.assert_close(found, net(x), rtol=0, atol=1e-4)

    for block in study.KEPT:
        net = trained(block)
        check(block, net, pictures, False)
        if block.startswith("sc"):                             # and with the gate off
            net[2].gate.register_forward_hook(lambda module, inputs, gate: torch.ones_like(gate))
            check(block, net, pictures[:20], True)


@pytest.mark.slow
def test_its_windows_are_the_measured_ones(open_page):
    page = open_page()
    for block in study.KEPT:
        net = trained(block)
        for row, column in ((12, 12), (0, 5), (15, 23)):
            found = page.evaluate("([id, ...at]) => [...seen(BLOCKS[id], run(BLOCKS[id], picture()), ...at)]",
                                  [block, row, column])
            expected = count.measured_field(net, 3, 24, at=(row, column), through_relus=True)
            assert torch.equal(torch.tensor(found).view(24, 24).bool(), expected), (block, row, column)


@pytest.mark.slow
def test_dots_follow_the_mouse_and_the_answer_follows_the_dots(open_page):
    page = open_page()
    page.locator("[data-try='1']").click()
    start, before = page.evaluate(DOT), answers(page)
    assert before == [1] * 4                                   # a match, 6 px apart, well seen by SCConv
    page.locator(".dot").nth(1).click()                        # its partner's colour changes
    assert answers(page) == [2] * 4
    assert [dot[2] for dot in page.evaluate(DOT)] == [start[0][2], 2 - start[1][2], start[2][2], start[3][2]]
    page.wait_for_timeout(600)                                 # the page has scrolled to the map
    box, cell = page.locator(".dot").first.bounding_box(), page.locator("#map").bounding_box()["width"] / 24
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 4 * cell, y + 2 * cell, steps=4)
    page.mouse.move(x + 8 * cell, y + 5 * cell, steps=4)
    page.mouse.up()
    settle(page)
    row, column, colour = page.evaluate(DOT)[0]
    assert (row, column, colour) == (start[0][0] + 5, start[0][1] + 8, start[0][2])        # moved, and not flipped
    far_away = answers(page)
    page.locator(".dot").nth(1).click()                        # 14 px away, its partner says nothing to it
    assert answers(page) == far_away
    page.locator("input[value=plain]").check(force=True)
    settle(page)
    assert "plain" in page.locator("#name").inner_text() and page.locator("#off").is_disabled()


@pytest.mark.slow
def test_without_the_gate_the_partner_does_not_matter(open_page):
    page = open_page()
    page.locator("[data-try='3']").click()
    partner = page.locator(".dot").nth(1)

    def two_answers():
        first = answers(page)
        partner.click()
        return first, answers(page)

    one, other = two_answers()
    assert one != other
    page.locator("#off").check()
    one, other = two_answers()
    assert one == other


@pytest.mark.slow
def test_the_keyboard_alone_plays(open_page):
    page = open_page()
    start = page.evaluate(DOT)
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    settle(page)
    row, column, colour = start[0]
    assert page.evaluate(DOT) == [[row + 2, column + 1, 2 - colour], *start[1:]]
    for _ in range(30):                                        # stops at the edge of the map
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    assert page.evaluate("() => state.selected") == 1 and page.evaluate(DOT)[0][0] == 0


@pytest.mark.slow
def test_a_finger_on_a_phone_moves_a_dot(open_page):
    page = open_page(width=390, touch=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.locator("#map").scroll_into_view_if_needed()
    start, cell = page.evaluate(DOT), page.locator("#map").bounding_box()["width"] / 24
    box = page.locator(".dot").nth(2).bounding_box()
    assert min(box["width"], box["height"]) >= 39
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    finger = page.context.new_cdp_session(page)

    def touch(kind, *points):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})

    touch("touchStart", (x, y))
    for part in range(1, 6):
        touch("touchMove", (x + part / 5 * 3 * cell, y - part / 5 * 4 * cell))
    touch("touchEnd")
    settle(page)
    row, column, colour = start[2]
    assert page.evaluate(DOT)[2] == [row - 4, column + 3, colour]
    page.touchscreen.tap(x + 3 * cell, y - 4 * cell)           # a tap changes the colour, also right after a drag
    settle(page)
    assert page.evaluate(DOT)[2] == [row - 4, column + 3, 2 - colour]
