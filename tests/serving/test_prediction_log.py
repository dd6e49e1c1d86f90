"""The spool: what was written is read back, a torn end costs only itself, and fullness costs no answer."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY
from serving import prediction_log
from serving.prediction_log import PredictionLog, has_ended, read_segment, read_session
from tests.waiting import until

NEVER = 3600.0


def batch(*numbers: int) -> list[dict[str, object]]:
    return [{"number": number, "text": "x" * 100} for number in numbers]


def numbers(folder: Path, ending: str = "*") -> list[int]:
    found = sorted(folder.glob(f"*.{ending}"))
    return [
        n
        for path in found
        if path.suffix in {".open", ".done"}
        for line in read_segment(path)
        for n in [json.loads(line)["number"]]
    ]


@pytest.fixture
def log(tmp_path):
    log = PredictionLog(tmp_path, use_case="flights", rotate_seconds=NEVER)
    yield log
    log.close()


def test_a_batch_is_on_disk_when_write_returns(log, tmp_path):
    assert log.write(batch(1, 2))
    assert log.write(batch(3))
    assert numbers(tmp_path, "open") == [1, 2, 3]


def test_a_segment_is_handed_over_within_the_rotation_without_another_write(tmp_path):
    log = PredictionLog(tmp_path, use_case="flights", rotate_seconds=0.05)
    log.write(batch(1))
    until(lambda: numbers(tmp_path, "done") == [1], 10)
    log.close()


@pytest.mark.parametrize("cut", [1, 8, 50])
def test_a_torn_record_costs_itself_only(log, tmp_path, cut):
    log.write(batch(1))
    log.write(batch(2))
    [path] = tmp_path.glob("*.open")
    path.write_bytes(path.read_bytes()[:-cut])
    assert numbers(tmp_path) == [1]


def test_a_flipped_bit_is_never_read_as_an_answer(log, tmp_path):
    for n in range(3):
        log.write(batch(n))
    [path] = tmp_path.glob("*.open")
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        assert numbers(tmp_path) in ([], [0], [0, 1])


def test_a_full_spool_drops_and_counts_and_takes_again_when_there_is_room(tmp_path):
    log = PredictionLog(tmp_path, use_case="flights", max_bytes=2000, rotate_seconds=0.05)
    written = [log.write(batch(n)) for n in range(20)]
    assert written[0]
    assert not written[-1]
    [path] = tmp_path.glob("*.session")
    assert (read_session(path).answered, read_session(path).dropped) == (20, written.count(False))
    deadline = time.monotonic() + 10
    while not log.write(batch(99)):
        for done in tmp_path.glob("*.done"):
            done.unlink()
        assert time.monotonic() < deadline
    log.close()


def test_half_a_write_leaves_nothing_behind_it_unreadable(log, tmp_path, monkeypatch):
    log.write(batch(1))
    real = prediction_log.os.write
    monkeypatch.setattr(prediction_log.os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    assert not log.write(batch(2))
    monkeypatch.undo()
    assert log.write(batch(3))
    assert numbers(tmp_path) == [1, 3]


def test_a_disk_that_refuses_costs_no_answer(log, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prediction_log.os, "write", full)
    assert not log.write(batch(1))
    monkeypatch.undo()
    assert log.write(batch(2))
    assert numbers(tmp_path) == [2]


def test_a_disk_that_is_away_for_a_moment_does_not_end_the_handing_over(tmp_path, caplog):
    folder, away = tmp_path / "spool", tmp_path / "away"
    log = PredictionLog(folder, use_case="flights", rotate_seconds=0.02)
    folder.rename(away)
    until(lambda: "prediction log" in caplog.text, 10)  # nobody wrote: it is the thread that says so
    away.rename(folder)
    log.write(batch(2))
    until(lambda: 2 in numbers(folder, "done"))
    log.close()


def test_a_segment_that_could_not_be_handed_over_goes_on_and_is_handed_over_later(log, tmp_path):
    log.write(batch(1))
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    with pytest.raises(FileNotFoundError):
        log._hand_over()
    away.rename(tmp_path)
    log.write(batch(2))
    log._hand_over()
    assert numbers(tmp_path, "done") == [1, 2]


def test_the_spool_is_measured_while_answers_are_written(log, tmp_path, monkeypatch):
    measured = prediction_log._used_bytes

    def slowly(folder: Path) -> int:
        found = measured(folder)
        assert log.write(batch(2))  # would wait for ever for a lock that is held
        return found

    monkeypatch.setattr(prediction_log, "_used_bytes", slowly)
    log.write(batch(1))
    measuring = threading.Thread(target=log._hand_over, daemon=True)
    measuring.start()
    measuring.join(10)
    assert not measuring.is_alive()
    assert log._used_bytes == measured(tmp_path)  # what was written meanwhile is counted


def test_what_was_refused_takes_no_room(tmp_path):
    (tmp_path / "old-00000001.refused").write_bytes(b"x" * 10_000)
    log = PredictionLog(tmp_path, use_case="flights", max_bytes=2000, rotate_seconds=NEVER)
    assert log.write(batch(1))
    (tmp_path / "old-00000002.done").write_bytes(b"x" * 10_000)
    log._hand_over()
    assert not log.write(batch(2))
    log.close()


@pytest.mark.usefixtures("processes")
def test_a_session_is_over_when_its_process_is_dead_and_not_before(tmp_path):
    code = f"""
import os, signal, sys
from pathlib import Path
from serving.prediction_log import PredictionLog
from tests.serving.test_prediction_log import batch
log = PredictionLog(Path({str(tmp_path)!r}), use_case="flights", rotate_seconds=3600)
log.write(batch(1, 2))
print("written", flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    [path] = tmp_path.glob("*.session")
    assert not has_ended(path)
    child.communicate("x")
    assert has_ended(path)
    assert (read_session(path).answered, numbers(tmp_path)) == (2, [1, 2])
