"""A learner's results as a file, and a folder of such files as a table."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest

from gnewton.teaching import check, hint, report
from gnewton.teaching.collect import main
from gnewton.teaching.exercises.exercise import RECORDS, find


@pytest.fixture(autouse=True)
def nothing_remembered():
    RECORDS.clear()


def wrong(*_):
    return 1.0


def your_turn(*_):
    raise NotImplementedError("your turn")


def written(folder, number="01", **kwargs):
    report(number, folder=folder, **kwargs)
    return json.loads((folder / f"report-{number}.json").read_text(encoding="utf-8"))


def results(content):
    return [said["result"] for said in content["exercises"].values()]


def test_each_exercise_has_its_result(tmp_path):
    check("01.1", find("01.1").solution)
    check("01.2", wrong)
    check("01.2", wrong)
    check("01.3", your_turn)
    hint("01.2")
    content = written(tmp_path, name="Ada Łukasz")
    assert results(content) == ["passed", "not yet", "not tried"]
    second = content["exercises"]["01.2"]
    assert (second["checks"], second["hints"]) == (2, 1)
    assert any(line.startswith("no") for line in second["lines"])
    assert content["name"] == "Ada Łukasz"
    assert "forged" in content["note"]


def test_the_courses_own_solutions_do_not_count(tmp_path):
    def solution_01_1(A):
        return find("01.1").solution(A)

    check("01.1", solution_01_1)
    assert results(written(tmp_path))[0] == "not tried"


def test_once_right_stays_right(tmp_path):
    check("01.1", find("01.1").solution)
    check("01.1", wrong)
    assert results(written(tmp_path))[0] == "passed"


def test_a_notebook_without_exercises_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match=r"one of 00, 01.*got '77'"):
        report("77", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def table(folder):
    out, err = io.StringIO(), io.StringIO()
    assert main([str(folder)], out, err) == 0
    return list(csv.DictReader(io.StringIO(out.getvalue()))), err.getvalue()


def test_a_folder_becomes_a_table(tmp_path):
    for name in ("ada", "ben"):
        (tmp_path / name).mkdir()
    check("01.1", find("01.1").solution)
    written(tmp_path / "ada", name="Ada, the first")
    RECORDS.clear()
    written(tmp_path / "ben", name="=1+1")
    written(tmp_path / "ben", "02", name="Ben")
    rows, said = table(tmp_path)
    assert [row["notebook"] for row in rows] == ["01", "01", "02"]
    assert [row["name"] for row in rows] == ["Ada, the first", "'=1+1", "Ben"]
    assert [row["passed"] for row in rows] == ["1 of 3", "0 of 3", "0 of 4"]
    assert [row["01.1"] for row in rows] == ["passed", "not tried", ""]
    assert said == ""


def odd_key(key):
    return json.dumps(
        {"exercises": {"01.1": {"result": "passed"}, key: {"result": "forged"}}, "name": "", "notebook": "01"}
    )


ODD = ["", "[]", "{}", '{"exercises": {"01.1": 3}, "name": "", "notebook": "01"}', "\xff", "[" * 100_000, "9" * 5000]
KEYS = ["extra", "name", "file", "passed", "notebook", "", "1", "01.", "01.1 ", "٠١.٢", "01.1\n", "=1+1"]


@pytest.mark.parametrize("text", [*ODD, *map(odd_key, KEYS)], ids=lambda text: text[:90])
def test_what_is_no_report_is_left_out_and_said(tmp_path, text):
    written(tmp_path)
    (tmp_path / "odd.json").write_bytes(text.encode("latin-1"))
    rows, said = table(tmp_path)
    assert len(rows) == 1
    assert "odd.json" in said


def test_a_folder_of_a_report_s_name_is_left_out_and_said(tmp_path):
    written(tmp_path)
    (tmp_path / "odd.json").mkdir()
    rows, said = table(tmp_path)
    assert len(rows) == 1
    assert "odd.json" in said


def test_a_mark_in_front_of_a_report_is_none_of_its_text(tmp_path):
    written(tmp_path, name="Ada")
    file = tmp_path / "report-01.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    rows, said = table(tmp_path)
    assert [row["name"] for row in rows] == ["Ada"]
    assert said == ""


@pytest.mark.parametrize(
    ("name", "shown"), [("Łukasz", b"\\u0141ukasz"), ("\ud800", b"\\ud800"), ("Zoë", "Zoë".encode("cp1252"))]
)
def test_a_console_of_256_characters_writes_every_name(tmp_path, name, shown):
    written(tmp_path)
    file = tmp_path / "report-01.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"name": name}), encoding="utf-8")
    command = [sys.executable, "-m", "gnewton.teaching.collect", str(tmp_path)]
    console = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=console, check=True)
    assert shown in done.stdout


def test_the_collector_runs_from_the_command_line(tmp_path):
    written(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "gnewton.teaching.collect"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("file,name,notebook,passed,01.1")
    lost = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert lost.returncode == 2
    assert "expected one folder" in lost.stderr
