"""The command line: what it says, what it starts, and that it needs neither make nor a shell nor a Unix console."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest

from gnewton.__main__ import main
from gnewton.course import environment, place
from gnewton.course.lab import wait

ROOT = Path(__file__).parents[2]
COMMANDS = ("lab", "check", "book", "student", "experiments")
# A console of Windows in Western Europe; what Python does there is simulated here, on no Windows.
CONSOLE = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}


def gnewton(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "gnewton", *arguments]
    return subprocess.run(command, capture_output=True, env=os.environ | variables, check=False)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status and all that was printed."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capsys.readouterr()
    return status, printed.out + printed.err


# -- what it says --------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, "--help")
    assert status == 0
    assert set(re.findall(r"(?m)^    (\w+)(?:  +\w|$)", text)) == set(COMMANDS)
    assert "examples:\n  gnewton lab" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, command, "--help")
    assert status == 0
    assert text.startswith("usage: ")


def test_examples_of_the_help_are_understood(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    for name in COMMANDS:
        monkeypatch.setattr(f"gnewton.__main__._{name}", lambda given, others: ran.append(given.command) or 0)
    for command in ("", "lab", "student"):
        _, text = said(capsys, *filter(None, [command]), "--help")
        for line in re.findall(r"(?m)^  gnewton (\w.*?)(?:  .*)?$", text):
            assert main(line.split()) == 0, line
    assert set(ran) == set(COMMANDS)


@pytest.mark.parametrize("wrong", [[], ["tea"], ["check", "--deep"], ["lab", "a", "b"], ["student", "--format", "x"]])
def test_a_wrong_call_says_so(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, *wrong)
    assert status == 2
    assert "usage: gnewton" in text


def test_experiments_takes_all_that_follows(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, "experiments")
    assert status == 0
    assert "autoencoder" in text
    assert said(capsys, "experiments", "mpl")[0] == 2


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version")[1] == f"gnewton {environment.installed('gnewton')}\n"


# -- check ---------------------------------------------------------------------------------------------------------


def test_check_finds_this_environment_complete(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, "check")
    assert status == 0
    assert "a summary agrees" in text
    assert re.search(r"(?m)^torch +\d", text)
    assert "jupyterlab 4" in text


def test_check_names_what_is_missing_and_what_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"jupyterlab": "3.6.1", "mlxtend": None}
    true_version = environment.installed
    monkeypatch.setattr(
        environment,
        "installed",
        lambda name: versions.get(name, true_version(name)) if name in versions else true_version(name),
    )
    status, text = said(capsys, "check")
    assert status == 1
    assert "missing    mlxtend, at least 0.23" in text
    assert "a newer jupyterlab: expected at least 4.2, got 3.6.1" in text
    assert text.rstrip().endswith('python -m pip install --upgrade "gnewton[lab]"')


def test_check_notices_a_device_that_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "summary_agrees", lambda device: False)
    status, text = said(capsys, "check")
    assert status == 1
    assert "WRONG" in text


# -- book, student -------------------------------------------------------------------------------------------------


def test_book_prints_the_address_that_it_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "a folder" / "index.html"
    opened: list[str] = []
    monkeypatch.setattr(place, "book", lambda: page)
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    assert said(capsys, "book", "--no-browser") == (0, page.as_uri() + "\n")
    assert opened == []
    assert said(capsys, "book") == (0, page.as_uri() + "\n")
    assert opened == [page.as_uri()]


def test_book_that_was_not_built_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "root", lambda: tmp_path)
    status, text = said(capsys, "book")
    assert status == 1
    assert "make book" in text


def test_student_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, "student", str(tmp_path / "out"))
    assert status == 0
    assert "15 notebooks" in text
    assert len(list((tmp_path / "out" / "notebooks").glob("*.ipynb"))) == 15
    assert (tmp_path / "out" / "refresher.md").exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("command", ["lab", "student"])
def test_what_the_disk_refuses_is_said_in_a_line(
    command: str, error: OSError, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "mkdir", mkdir)
    status, text = said(capsys, command, str(tmp_path / "out"))
    assert status == 1
    assert text == f"gnewton {command}: {error}\n"


@pytest.mark.parametrize("command", ["lab", "student"])
def test_a_file_in_the_place_of_the_folder_is_said_with_what_to_do(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    status, text = said(capsys, command, str(file))
    assert status == 1
    assert re.fullmatch(rf"gnewton {command}: expected a folder, got the file .*; name another .*\n", text)
    assert "Errno" not in text
    assert file.read_text() == "mine"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "experiments"])
def test_ctrl_c_is_said_in_a_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"gnewton.__main__._{command}", interrupted)
    status, text = said(capsys, command)
    assert status == 130
    assert re.fullmatch(rf"gnewton {command}: interrupted; .*\n", text)


@pytest.mark.parametrize("command", [["check"], ["student"], ["experiments"]])
def test_nobody_who_reads_is_no_error_to_tell(command: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "gnewton", *command]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# -- lab -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What would have been started: the list of words and the environment."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    class Process:
        def __init__(self, words: list[str], env: dict[str, str]) -> None:
            calls.append((words, env))
            self.interrupted = False

        def wait(self) -> int:
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return 3

    monkeypatch.setattr(subprocess, "Popen", Process)
    return calls


def test_lab_copies_and_starts(
    tmp_path: Path, started: list[tuple[list[str], dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "with a space"
    status, text = said(capsys, "lab", str(folder), "--no-browser", "--port", "8899", "--ServerApp.token=x")
    # Ctrl-C goes to JupyterLab, which asks; the status is JupyterLab's.
    assert status == 3
    ((words, env),) = started
    assert words[:3] == [sys.executable, "-m", "jupyterlab"]
    assert {"--no-browser", "--ServerApp.port=8899", "--ServerApp.token=x"} < set(words)
    assert f"--ServerApp.root_dir={folder}" in words
    assert env["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0] == str(place.JUPYTER)
    assert len(list(folder.glob("*.ipynb"))) == 15
    assert str(folder) in text


def test_what_ends_gnewton_lab_ends_jupyterlab() -> None:
    told: list[str] = []

    class Process:
        def terminate(self) -> None:
            told.append("terminate")

        def wait(self) -> int:
            signal.raise_signal(signal.SIGTERM)
            return 5

    before = signal.getsignal(signal.SIGTERM)
    assert wait(Process()) == 5
    assert told == ["terminate"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_lab_keeps_the_reader_s_work(
    tmp_path: Path, started: list[tuple[list[str], dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "lab", str(tmp_path))
    (tmp_path / "00-tour.ipynb").write_text("mine")
    said(capsys, "lab", str(tmp_path))
    assert (tmp_path / "00-tour.ipynb").read_text() == "mine"
    assert len(started) == 2


def test_lab_without_jupyterlab_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, text = said(capsys, "lab", str(tmp_path / "learn"))
    assert status == 1
    assert 'python -m pip install "gnewton[lab]"' in text
    assert not (tmp_path / "learn").exists()


def test_jupyterlab_asks_no_question() -> None:
    overrides = json.loads((place.JUPYTER / "labconfig" / "default_setting_overrides.json").read_text(encoding="utf-8"))
    news = overrides["@jupyterlab/apputils-extension:notification"]
    assert news == {"fetchNews": "false", "checkForUpdates": False}


# -- Windows, simulated: no Windows was at hand --------------------------------------------------------------------

FORBIDDEN = re.compile(r'[<>:"|?*\\]|[ .]$')
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def refused(name: str) -> list[str]:
    """The parts of a path that Windows does not take as names."""
    return [part for part in name.split("/") if FORBIDDEN.search(part) or RESERVED.fullmatch(part)]


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("no git here")
    return listing.stdout.decode().rstrip("\0").split("\0")


def test_no_file_has_a_name_that_windows_refuses() -> None:
    assert [name for name in tracked() if refused(name)] == []


def test_no_two_files_differ_in_case_alone() -> None:
    names = tracked()
    assert len({name.lower() for name in names}) == len(names)


def test_longest_path_fits_into_windows() -> None:
    # 260 characters in all; a home folder, a virtual environment and site-packages take a hundred.
    inside = PureWindowsPath("gnewton/course/files")
    assert max(len(str(inside / PureWindowsPath(name))) for name in tracked()) < 150


@pytest.mark.parametrize("name", ["a:b", "results/con.json", "what?.md", "folder./x", 'say"so"'])
def test_a_name_that_windows_refuses_is_noticed(name: str) -> None:
    assert refused(name)


@pytest.mark.parametrize("command", [["--help"], ["lab", "--help"], ["check"], ["experiments"], ["student", "--help"]])
def test_a_console_of_256_characters_shows_everything(command: list[str]) -> None:
    done = gnewton(*command, **CONSOLE)
    assert done.returncode == 0, done.stderr
    assert b"\\u" not in done.stdout


def test_a_folder_that_the_console_cannot_write_does_not_end_the_command(tmp_path: Path) -> None:
    done = gnewton("student", str(tmp_path / "Übungen η"), **CONSOLE)
    assert done.returncode == 0, done.stderr
    assert "Übungen \\u03b7".encode("cp1252") in done.stdout


def test_nothing_of_the_command_calls_a_shell() -> None:
    sources = [ROOT / "gnewton" / "__main__.py", *(ROOT / "gnewton" / "course").rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert "subprocess" in text
    assert not re.search(r"shell=True|os\.system|os\.exec|/bin/|os\.fork|chmod|symlink", text)


def test_every_file_is_read_and_written_as_utf_8(tmp_path: Path) -> None:
    # Elsewhere the default is the console's: with this switch Python warns at each place that leaves it open.
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "always::EncodingWarning", "-m", "gnewton"]
    for words in (["check"], ["student", str(tmp_path)], ["experiments"]):
        done = subprocess.run([*command, *words], capture_output=True, check=True, text=True)
        ours = [
            line for line in done.stderr.splitlines() if "EncodingWarning" in line and str(ROOT / "gnewton") in line
        ]
        assert ours == []
