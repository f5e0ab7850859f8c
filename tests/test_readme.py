"""The README keeps its promises: its code runs, its links lead somewhere, and every command line is one."""
import base64
import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from scnet_minimal.lab.study import dots
from scnet_minimal.lab.study.compare import t_interval
from scnet_minimal.lab.study.looks import looked, paired
from scnet_minimal.lab.study.photographs import KINDS, comparisons, right_by_kind
from scnet_minimal.lab.study.record import recorded
from scnet_minimal.lab.study.transfer import transferred

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("train_imagenet", "detection", "benchmark", "coursework", "walkthrough", "study")
PAGES = ["README.md", "notebooks/TEACHING.md", "data/toynette/README.md", "data/trained/README.md",
         "data/studies/README.md"]


@functools.cache
def parser_of(command):
    name = f"scnet_minimal.lab.{command}"
    return importlib.import_module(f"{name}.__main__" if command == "study" else name).parser()


def in_code(markdown):
    """What stands in fenced blocks and between backticks, each span on one line."""
    blocks = re.findall(r"```\w*\n(.*?)```", markdown, re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", markdown, flags=re.S))
    return "\n".join([*blocks, *(" ".join(span.split()) for span in spans)])


def command_lines(text):
    """(command, arguments) of every line that starts one of ours; what follows two spaces or a # is a comment."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    for command, line in re.findall(r"-m scnet_minimal\.lab\.([\w.]+)(?: (\S.*))?$", text, re.M):
        yield command, shlex.split(re.split(r"\s{2,}| #", line)[0])


def help_texts(command):
    """The command's --help without the usage lines, and that of each of its subcommands."""
    yield parser_of(command).format_help().partition("\n\n")[2]
    for name in re.findall(r"^ {4}(\w+) {2,}\S", parser_of(command).format_help(), re.M):      # subcommands
        with contextlib.redirect_stdout(screen := io.StringIO()), contextlib.suppress(SystemExit):
            parser_of(command).parse_args([name, "--help"])
        yield screen.getvalue().partition("\n\n")[2]


def assert_all_parse(text, least):
    lines = list(command_lines(text))
    assert len(lines) >= least
    for command, arguments in lines:
        try:
            parser_of(command).parse_args(arguments)
        except SystemExit as end:
            assert not end.code, f"{command} {shlex.join(arguments)}"


@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / page).is_file()])
def test_every_command_line_on_a_page_parses(page):
    assert_all_parse(in_code((ROOT / page).read_text(encoding="utf-8")), 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_in_a_help_text_parses(command):
    assert_all_parse("\n".join(help_texts(command)), 1)


def test_every_command_line_in_the_notebooks_parses():
    texts = [in_code("".join(cell["source"])) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
             for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
    assert_all_parse("\n".join(texts), 3)


def test_command_lines_are_found_wherever_they_stand():
    page = ("Run `python -m scnet_minimal.lab.a\nx --y 1` or\n"
            "```sh\ntorchrun -m scnet_minimal.lab.b 'p q' \\\n    --z   # why\n```")
    assert list(command_lines(in_code(page))) == [("b", ["p q", "--z"]), ("a", ["x", "--y", "1"])]


@pytest.mark.slow
def test_the_examples_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(block, names)
    assert names["y"].shape == (1, 64, 56, 56) and names["logits"].shape == (1, 10)
    assert names["maps"].shape == (1, 2048, 7, 7)
    assert any(isinstance(module, names["SCConv"]) for module in names["model"].modules())      # the ResNeXt


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_local_links_and_pictures_exist(target):
    assert (ROOT / target).is_file()


def test_every_notebook_is_in_the_table():
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"](notebooks/{notebook.name})" in README


def test_pictures_of_the_readme_are_stored_outputs_of_the_notebooks_and_no_picture_lies_unused():
    """But for the still of the interactive page."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")]
    stored = {base64.b64decode(out["data"]["image/png"]) for text in texts for cell in json.loads(text)["cells"]
              for out in cell.get("outputs", []) if "image/png" in out.get("data", {})}
    for picture in (ROOT / "notebooks" / "images").glob("*.png"):
        if f"notebooks/images/{picture.name}" in README:
            assert picture.read_bytes() in stored or picture.stem == "explore", picture.name
        else:
            assert any(f"(images/{picture.name})" in text for text in texts), picture.name


def test_the_six_packages_have_the_same_ranges_wherever_they_are_named():
    wanted = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(wanted) == 6
    assert [line for line in wanted if f'"{line}"' not in (ROOT / "pyproject.toml").read_text()] == []


def test_the_numbers_beside_the_game_are_the_records():
    rows = [row for row in recorded("dots") if int(row["pictures"]) == dots.PICTURES]
    text = " ".join(README.split())
    told = re.search(r"two plain 3×3 convolutions (0\.\d\d), a dilated one (0\.\d\d), SCConv (0\.\d\d),", text).groups()
    medians = [statistics.median(float(row["iou"]) for row in rows if row["block"] == block)
               for block in ("two", "dilated4", "sc4")]
    assert [f"{median:.2f}" for median in medians] == list(told)


def points(interval):
    return "{} ({} to {})".format(*(f"{100 * value:+.1f}".replace("-", "−") for value in interval))


def test_the_claims_about_the_game_are_the_records():
    rows = [row for row in recorded("dots") if int(row["pictures"]) == dots.PICTURES and row["threads"] == "1"
            and (row["isa"], row["torch"]) == ("avx2", "2.15.0")]

    def over(other, column):
        iou = {(row["block"], row["seed"]): float(row[column]) for row in rows}
        return t_interval([iou["sc4", seed] - iou[other, seed] for block, seed in iou if block == "sc4"])

    text = " ".join(README.split())
    assert f"dots 6 px apart: {points(over('sc1', 'iou_6'))} points of IoU over $r = 1$" in text
    assert f"in the game {points(over('sc4_max', 'iou'))} points of IoU" in text


@pytest.mark.slow
def test_the_table_of_photographs_is_the_records():
    rows, lines = recorded("photographs"), README.splitlines()
    found = {one.kinds: one.seeds for one in comparisons(rows)}
    for kind, (label, *_) in KINDS.items():
        own = [row for row in rows if row["kind"] == kind]
        one = [100 * float(row["top1"]) for row in own]
        cells = [label, str(len(own)), f"{int(own[0]['parameters']):,}",
                 f"{statistics.mean(one):.1f} ({min(one):.1f} to {max(one):.1f})",
                 *([points(found["scnet", kind])] if ("scnet", kind) in found else [])]
        assert "| " + " | ".join(cells) + " |" in [line.replace("| |", "|") for line in lines], label
    text, main = " ".join(README.split()), comparisons(rows)[0]
    assert f"would have found {100 * main.findable:.1f} points four times in five" in text
    assert "new seeds the interval is " + points(main.both).partition("(")[2][:-1] in text
    assert f"eight pairs: {points(main.seeds).replace(' ', ' points of top-1 ', 1)}" in text
    first, again = right_by_kind(rows), right_by_kind(recorded("photographs_again"))
    once_more = {kind: points(t_interval([again["scnet"][seed].mean() - right.mean()
                                          for seed, right in (first[kind] | again[kind]).items()]))
                 for kind in ("plain", "no_gate")}
    assert f"the SCNets lead the twin by {once_more['plain'].removeprefix('+')}" in text
    assert f"and the network without gate and K₂ by {once_more['no_gate'].removeprefix('+')}" in text
    assert f"eight pairs: {points(found['scnet', 'r1'])}" in text


def test_the_claims_about_maps_are_the_records():
    rows, text = recorded("looks"), " ".join(README.split())
    for measure, words in (("energy", "points of its energy in the object's box"), ("area", "points of area")):
        difference = points(paired(*(looked(rows, kind, measure, "own, moved") for kind in ("scnet", "plain"))))
        assert f"{difference} {words}" in text
    ungated = points(paired(*(looked(rows, kind, "energy", "own, moved") for kind in ("no_gate", "plain"))))
    assert f"networks without gate and $K_2$ lead the twin as well, by {ungated}" in text


def test_the_claims_about_other_photographs_are_the_records():
    rows, text = recorded("transfer"), " ".join(README.split())
    masks = points(paired(*(transferred(rows, "cam", kind, "energy, own, moved") for kind in ("scnet", "plain"))))
    assert f"120 photographs of pets, eight pairs: {masks.replace(' ', ' points of energy ', 1)}" in text
    for task, measure, words in (("segment", "miou", "of mean IoU"), ("mask", "box_ap", "of box AP"),
                                 ("mask", "mask_ap", "of mask AP")):
        difference = points(paired(*(transferred(rows, task, kind, measure) for kind in ("scnet", "plain"))))
        assert f"{difference} {words}" in text or f"{difference} points {words}" in text
