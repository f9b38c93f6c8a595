"""`python -m lib.bench.records` on tiny chapters: order, resume, failures, and a budget that really ends things."""

import json
import os
import tarfile
import time

import pytest

from lib.bench.measure.machine import hardware
from lib.bench.measure.system_load import Load
from lib.bench.records import chapter_process, command
from lib.bench.records.command import find_chapters, main, parse_budget
from lib.bench.records.preflight import why_busy
from lib.bench.records.source_digest import source_digest
from tests.helpers_load import detached_program

REAL = """
from lib.bench.records.record import Record
record = Record("{name}", model="toy", weights="random", dtype="float32", device="cpu")
record.add("x", unit="s", columns={{"a": [1, 2]}})
record.headline("speed", 2.5, "×")
record.finish()
"""
# Writes what a Record would, without the seconds that importing torch takes.
FAKE = """
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--record") + 1], "{slug}")
out.mkdir(parents=True, exist_ok=True)
record = dict(schema=1, scale=os.environ["BOOK_SCALE"], headlines=[dict(text="speed", value=2.5, unit="×")],
              measurements=dict(), fingerprint=dict())
record["source"] = pathlib.Path(__file__).with_suffix(".digest").read_text()
(out / "{name}.json").write_text(json.dumps(record))
open(r"{log}", "a").write("{name} ")
"""
HANG = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(r"{log}", "a").write(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "describe_in_a_process", lambda: "device")
    monkeypatch.setattr(chapter_process, "hub_answers", lambda: False)
    monkeypatch.setattr(command, "why_busy", lambda: "")
    monkeypatch.setattr(chapter_process, "LOAD_BEFORE", 0.05)
    folder, log = tmp_path / "chapters", tmp_path / "log"
    folder.mkdir()

    def write(name, text=FAKE):
        script = folder / f"{name}.py"
        script.write_text(text.format(name=name, log=log, slug=hardware()["slug"]))
        script.with_suffix(".digest").write_text(source_digest(script))

    write.folder, write.log, write.out = folder, log, tmp_path / "out"
    write.run = lambda *args: main(
        ["--scale", "smoke", "--chapters", str(folder), "--out", str(write.out), *args]
    )
    return write


def test_budget_texts():
    assert [parse_budget(text) for text in ("90s", "8m", "1.5h", "480")] == [90, 480, 5400, 480]
    for bad in ("", "8 minutes", "-3m", "0", "m"):
        with pytest.raises(ValueError, match="budget"):
            parse_budget(bad)


def test_order_and_choice(chapters):
    for name in ("01_a", "02_b", "03_c", "99_z"):
        chapters(name)
    names = lambda only=None: [path.stem for path in find_chapters(chapters.folder, only)]  # noqa: E731
    assert names() == ["03_c", "02_b", "01_a", "99_z"]  # most informative first
    assert names("01, 3,02_b") == ["01_a", "03_c", "02_b"]
    with pytest.raises(ValueError, match="only='07'"):
        names("07")


def test_records_resumes_and_forces(chapters, capsys):
    chapters("01_a")
    chapters("02_b")
    assert chapters.run() == 0
    assert chapters.log.read_text() == "02_b 01_a "
    (path,) = chapters.out.glob("*/01_a.json")
    assert json.loads(path.read_text())["scale"] == "smoke"
    table = capsys.readouterr().out
    assert "recorded" in table and "speed: 2.5 ×" in table
    assert chapters.run() == 0 and chapters.log.read_text() == "02_b 01_a "  # both up to date
    assert "up to date" in capsys.readouterr().out
    chapters("01_a", FAKE + "\nchanged = True")
    assert chapters.run() == 0 and chapters.log.read_text() == "02_b 01_a 01_a "
    assert (
        chapters.run("--force", "--only", "02") == 0
        and chapters.log.read_text() == "02_b 01_a 01_a 02_b "
    )


def test_a_real_record_is_found_and_resumed(chapters, capsys):
    chapters("01_a", REAL)
    assert chapters.run() == 0 and "recorded" in capsys.readouterr().out
    (path,) = chapters.out.glob("*/01_a.json")
    assert json.loads(path.read_text())["measurements"]["x"]["columns"] == {"a": [1, 2]}
    assert chapters.run() == 0 and "up to date" in capsys.readouterr().out


def test_figures_of_the_last_record_stay_and_no_others(chapters):
    drawing = (
        FAKE
        + """
figures = pathlib.Path(sys.argv[sys.argv.index("--figures") + 1])
(figures / "{{}}_a.svg".format("{name}"[:2])).write_text("new")
"""
    )
    chapters("01_a", drawing)
    chapters("02_b", drawing + "raise RuntimeError")
    folder = chapters.out / hardware()["slug"] / "figures"
    folder.mkdir(parents=True)
    for name in ("01_old.svg", "02_old.svg"):
        (folder / name).write_text("old")
    assert chapters.run() == 1
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "01_a.svg": "new",
        "02_old.svg": "old",
    }


def test_a_failure_is_told_and_the_others_go_on(chapters, capsys):
    chapters("02_b", "raise RuntimeError('out of luck')")
    chapters("03_c", "print('no record')")
    chapters("01_a")
    assert chapters.run() == 1
    out = capsys.readouterr().out
    assert "out of luck" in out and "wrote no 03_c.json" in out
    assert [path.name for path in chapters.out.glob("*/*")] == ["01_a.json"]


def test_a_damaged_record_costs_its_chapter_only(chapters, capsys):
    chapters("01_a")
    chapters("02_b")
    chapters.run()
    (path,) = chapters.out.glob("*/02_b.json")
    path.write_text("{")
    assert chapters.run() == 1 and "not valid JSON" in capsys.readouterr().out


def test_the_budget_kills_a_chapter_with_its_children(chapters, capsys):
    chapters("03_c", HANG)
    chapters("02_b")
    start = time.monotonic()
    assert chapters.run("--budget", "3s") == 3
    assert time.monotonic() - start < 20
    out = capsys.readouterr().out
    assert "out of time" in out and "not run" in out and not list(chapters.out.glob("*/*"))
    child = int(chapters.log.read_text())
    time.sleep(0.2)
    assert not _alive(child)


def test_a_chapter_over_its_own_budget_costs_no_other(chapters, tmp_path):
    chapters("02_hangs", HANG)
    chapters("03_b")
    chapters("04_c")
    tar = tmp_path / "back" / "records.tar.gz"
    assert chapters.run("--chapter-budget", "4s", "--budget", "5m", "--tar", str(tar)) == 3
    with tarfile.open(tar) as archive:
        names = {name.split("/")[-1] for name in archive.getnames() if name.endswith(".json")}
    assert names == {"03_b.json", "04_c.json"}


def test_the_gpu_scale_without_a_gpu_ends_before_it_begins(chapters, capsys, monkeypatch):
    chapters("01_a")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        chapters.run("--scale", "gpu")
    assert ended.value.code == 2 and "needs a CUDA device" in capsys.readouterr().err


def test_wrong_arguments_end_with_a_message(chapters, capsys):
    for args in (["--only", "07"], ["--budget", "soon"], []):
        with pytest.raises(SystemExit) as ended:
            chapters.run(*args)
        assert ended.value.code == 2
    assert "no chapters" in capsys.readouterr().err


QUIET = Load(60.0, 2, others_mean=0.01, others_max=0.1, busy_samples=0.0, steal=0.0)
BUSY = Load(60.0, 2, others_mean=0.4, others_max=0.9, busy_samples=0.7, steal=0.0)


@pytest.fixture
def during(monkeypatch):
    """Sets the load that the command sees while a chapter runs."""

    def see(load):
        monkeypatch.setattr(chapter_process.LoadMonitor, "start", lambda self: self)
        monkeypatch.setattr(chapter_process.LoadMonitor, "stop", lambda self: load)

    return see


def test_the_record_says_what_others_used(chapters, during, capsys):
    during(QUIET)
    chapters("01_a", REAL)
    assert chapters.run() == 0
    (path,) = chapters.out.glob("*/01_a.json")
    load = json.loads(path.read_text())["fingerprint"]["load"]
    assert load["during"]["others_mean"] == 0.01 and load["disturbed"] is False
    assert load["before"]["seconds"] > 0, "measured before the chapter started"
    assert "disturbed" not in capsys.readouterr().out


def test_disturbed_chapters_are_listed_also_when_they_are_not_run_again(chapters, during, capsys):
    chapters("01_a")
    chapters("02_b")
    during(QUIET)
    assert chapters.run("--only", "01") == 0
    during(BUSY)
    assert chapters.run() == 0
    (path,) = chapters.out.glob("*/02_b.json")
    assert json.loads(path.read_text())["fingerprint"]["load"]["disturbed"] is True
    for _ in range(2):  # just recorded, then up to date
        out = capsys.readouterr().out
        assert "Other programs disturbed 02_b:" in out and "--force --only 02" in out
        chapters.run()


def test_a_busy_machine_is_refused_and_its_programs_named(chapters, capsys, monkeypatch):
    monkeypatch.setattr(command, "why_busy", lambda: why_busy(1.0))
    chapters("01_a")
    with detached_program(), pytest.raises(SystemExit) as ended:
        chapters.run()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "this machine is busy" in error and "--force" in error
    assert "Busiest programs: " in error and "of a core" in error
    assert not chapters.log.exists(), "no chapter ran"


def test_force_records_on_a_busy_machine(chapters, capsys, monkeypatch):
    monkeypatch.setattr(command, "why_busy", lambda: "this machine is busy.")
    chapters("01_a")
    assert chapters.run("--force") == 0
    assert "warning    this machine is busy." in capsys.readouterr().out
    assert chapters.log.read_text() == "01_a "


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return os.path.exists(f"/proc/{pid}")


def test_a_hub_that_takes_no_connection_is_found_out_at_once(monkeypatch):
    import socket

    from lib.bench.records.preflight import hub_answers

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub_answers.cache_clear()
        assert not hub_answers()  # bound, but nothing listens
        assert not hub_answers()  # asked once: each chapter would wait again
        server.listen()
        hub_answers.cache_clear()
        assert hub_answers()
    hub_answers.cache_clear()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert hub_answers.__wrapped__()  # not ours to tell
