"""The study command and its record: a table that resumes, loses nothing, and says what it holds."""
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scnet_minimal.lab.errors import FileError, UserError
from scnet_minimal.lab.study import __main__ as study
from scnet_minimal.lab.study import dots
from scnet_minimal.lab.study import record as recording

ROOT = Path(__file__).resolve().parents[1]
DOTS = ROOT / "data" / "studies" / "dots.csv"
JOBS = [{"block": b, "seed": s} for s in range(3) for b in ("a", "b")]


def test_rows_come_back_as_they_were_written(tmp_path):
    table = tmp_path / "new" / "t.csv"
    assert recording.read_rows(table) == []
    for job in JOBS:
        recording.append_row(table, job)
    assert recording.read_rows(table) == [{"block": job["block"], "seed": str(job["seed"])} for job in JOBS]


@pytest.mark.parametrize("torn", ["b", "b,1", "b,12345"])
def test_a_torn_last_line_is_no_row_and_the_next_row_replaces_it(tmp_path, torn):
    table = tmp_path / "t.csv"
    recording.append_row(table, JOBS[0])
    whole = table.read_text()
    table.write_text(whole + torn)
    assert len(recording.read_rows(table)) == 1
    recording.append_row(table, JOBS[1])
    assert table.read_text() == whole + "b,0\n"


def test_a_torn_first_line_is_replaced(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("block,se")
    recording.append_row(table, JOBS[0])
    assert table.read_text() == "block,seed\na,0\n"


def test_other_columns_are_refused_and_the_table_stays(tmp_path):
    table = tmp_path / "t.csv"
    recording.append_row(table, JOBS[0])
    before = table.read_bytes()
    with pytest.raises(UserError, match="block,seed"):
        recording.append_row(table, {"block": "a", "score": 1})
    assert table.read_bytes() == before


@pytest.mark.parametrize("path", [".", "t.csv/x.csv"])
def test_a_table_that_cannot_be_written_is_named(tmp_path, path):
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(FileError, match=str(tmp_path)):
        recording.append_row(tmp_path / path, JOBS[0])


def test_nothing_runs_where_every_run_is_in_the_table(tmp_path):
    table = tmp_path / "t.csv"
    for job in JOBS:
        recording.append_row(table, job)
    assert recording.record(table, JOBS, work=None, key=("block", "seed")) == 0


@pytest.mark.slow
def test_only_missing_runs_are_made_in_processes_of_their_own(tmp_path):
    table = tmp_path / "t.csv"
    for job in JOBS[:4]:
        recording.append_row(table, job)
    assert recording.record(table, JOBS, work=dict, key=("block", "seed"), processes=2) == 2
    assert sorted((r["block"], int(r["seed"])) for r in recording.read_rows(table)) == sorted(
        (job["block"], job["seed"]) for job in JOBS)
    assert "ATEN_CPU_CAPABILITY" not in os.environ


@pytest.mark.slow
def test_a_killed_recording_resumes_with_every_finished_run(tmp_path):
    table = tmp_path / "dots.csv"
    command = [sys.executable, "-m", "scnet_minimal.lab.study", "dots", "--blocks", "coarse", "plain", "--seeds", "3",
               "--pictures", "32", "--jobs", "1", "--out", str(table)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    while process.poll() is None and len(recording.read_rows(table)) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = recording.read_rows(table)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = recording.read_rows(table)
    assert len(finished) >= 2 and rows[:len(finished)] == finished
    assert sorted((r["block"], r["seed"]) for r in rows) == sorted((b, str(s)) for b in ("coarse", "plain")
                                                                  for s in range(3))


def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(recording, "native_level", lambda: "avx2")
    assert recording.environment("default") == {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    assert recording.environment("native") == {}
    with pytest.raises(UserError, match="avx2"):
        recording.environment("avx512")
    monkeypatch.setattr(recording, "native_level", lambda: "sve256")
    with pytest.raises(UserError, match="sve256"):
        recording.environment("default")


def test_quantiles_by_hand():
    rows = [{"block": "a", "iou": str(v)} for v in range(101)] + [{"block": "b", "iou": "7"}]
    found = recording.quantiles(rows, ("block",), "iou")
    assert list(found) == [("a",), ("b",)] and found["a",][0] == 101
    np.testing.assert_allclose(found["a",][1], [0, 5, 25, 50, 75, 95, 100])
    np.testing.assert_allclose(found["b",][1], [7] * 7)


def test_a_better_of_two_holds_as_often_as_computed():
    assert recording.failure_bound(100, runs=1) == pytest.approx(0.0295, abs=1e-4)      # the rule of three: 3 / n
    assert recording.failure_bound(100, runs=2) < 1e-3 < recording.failure_bound(80, runs=2)


def test_the_estimate_of_a_tail_is_right_for_an_exponential_one_and_high_for_a_normal_one():
    rng = np.random.default_rng(0)
    heavy, normal = rng.exponential(1, 100_000), rng.normal(0, 1, 100_000)
    for sign in (-1, 1):                                                                # misses below and above
        assert recording.failure_estimate(sign * heavy, sign * 7) == pytest.approx(np.exp(-7), rel=0.1)
        assert 0.001 < recording.failure_estimate(sign * normal, sign * 3.1) < 0.01     # 0.00097 in truth
    with pytest.raises(ValueError, match="0.1"):
        recording.failure_estimate(normal, 0.1)


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, fact", [
    (["dots", "--seeds", "0"], "not 0"), (["dots", "--seeds", "-3"], "--seeds"), (["dots", "--jobs", "x"], "not x"),
    (["dots", "--blocks", "no"], "sc4_sum"), (["dots", "--isa", "neon"], "avx2"), ([], "STUDY"),
    (["toynette"], "--out"), (["photographs", "--device", "tpu"], "cuda")])
def test_what_cannot_be_is_said_with_exit_code_2(arguments, fact, capsys):
    assert study.main(arguments) == 2
    error = capsys.readouterr().err
    assert fact in error and error.count("\n") == 1


def test_an_unknown_network_is_said_with_the_names_there_are(capsys):
    assert study.main(["trained", "scnet_toy_9"]) == 2
    err = capsys.readouterr().err
    assert "scnet_toy_9" in err and "resnet_toy_2" in err


@pytest.mark.parametrize("name", ["dots", "trained", "toynette"])
def test_help_shows_how(name, capsys):
    with pytest.raises(SystemExit) as ended:
        study.main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"study {name}" in out
    assert name != "dots" or all(block in out for block in dots.BLOCKS)


def test_the_table_of_the_record(tmp_path, capsys):
    table = tmp_path / "t.csv"
    assert study.main(["dots", "--table", "--out", str(table)]) == 0
    for seed, iou in enumerate((0.80, 0.70, 0.90)):
        row = {"block": "sc4", "seed": seed, "pictures": 10, **recording.setting("native", 1), "cpu_s": 1, "iou": iou}
        recording.append_row(table, row | {f"iou_{d}": d / 10 for d in dots.DISTANCES})
    assert study.main(["dots", "--table", "--out", str(table)]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:3] == ["sc4", "3", "70.0"] and last[5] == "80.0"
    assert last[8:] == ["90.0", "|", *map(str, range(20, 100, 10))]


# --- what is recorded -------------------------------------------------------------------------------------------------

def test_the_record_is_complete_and_every_run_stands_in_it_once():
    with DOTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert DOTS.stat().st_size < 1_000_000
    assert len({tuple(row[k] for k in study.KEY) for row in rows}) == len(rows)
    assert all(0 <= float(row[c]) <= 1 for row in rows for c in row if c.startswith("iou"))
    seeds = {}
    for row in rows:
        where = row["pictures"], row["isa"], row["threads"], row["torch"]
        seeds.setdefault(where, {}).setdefault(row["block"], set()).add(int(row["seed"]))
    for block in dots.BLOCKS:
        assert seeds["3200", "avx2", "1", "2.15.0"][block] >= set(range(40)), block
        for where in (("avx2", "1", "2.11.0"), ("avx2", "2", "2.15.0"), ("default", "1", "2.15.0")):
            if block != "large" or where[2] == "2.11.0":                    # 20 s a run and more
                assert seeds[("3200", *where)][block] >= set(range(10)), (block, where)
    for block in ("plain", "two", "dilated4", "se", "stack", "stack_half", "sc4", "sc4_sum", "sc8"):
        assert seeds["12800", "avx2", "1", "2.15.0"][block] >= set(range(10)), block


def test_the_page_shows_the_table_of_the_record():
    assert dots.dots_table(recording.read_rows(DOTS)) in (DOTS.parent / "README.md").read_text(encoding="utf-8")
