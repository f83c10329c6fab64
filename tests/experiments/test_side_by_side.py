"""Jobs at the same time: apart from each other, none lost, none left behind."""

import os
import platform
import signal
import threading
import time
from pathlib import Path

import pytest

from experiments.side_by_side import shares, side_by_side
from hierarchy.training.trainer import Interrupted
from tests.experiments.side_by_side_jobs import fail, note_cores, note_faults, told_by_somebody_else, work_until_told


@pytest.mark.parametrize("cores", [2, 3, 7, 16])
def test_every_core_has_one_job_and_no_job_is_without(cores):
    apart = shares(list(range(cores)), 2)
    assert sorted(apart[0] + apart[1]) == list(range(cores))
    assert abs(len(apart[0]) - len(apart[1])) <= 1


def test_one_core_is_shared():
    assert shares([3], 2) == [[3], [3]]


def test_each_job_has_its_own_cores_and_log(tmp_path):
    paths = {name: tmp_path / f"{name}.cores" for name in ("one", "two")}
    side_by_side({name: (note_cores, (path,)) for name, path in paths.items()}, tmp_path)
    expected = shares(sorted(os.sched_getaffinity(0)), 2)
    assert [path.read_text() for path in paths.values()] == [" ".join(map(str, cores)) for cores in expected]
    assert all((tmp_path / f"{name}.log").read_text() == "noted\n" for name in paths)


def test_a_job_has_its_memory_in_huge_pages_unless_told_otherwise(tmp_path, monkeypatch):
    """Sixteen thousand pages of 4 KiB, or 32 of 2 MiB."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if platform.libc_ver()[0] != "glibc" or not enabled.exists() or "[madvise]" not in enabled.read_text():
        pytest.skip("needs glibc, and a kernel that gives huge pages to who asks for them")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    side_by_side({"one": (note_faults, (tmp_path / "huge",))}, tmp_path)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    side_by_side({"one": (note_faults, (tmp_path / "small",))}, tmp_path)
    huge, small = (float((tmp_path / name).read_text()) for name in ("huge", "small"))
    assert small > 10_000
    assert huge < 0.2 * small


def test_a_job_that_fails_is_named_and_the_other_saves(tmp_path):
    saved = tmp_path / "saved"
    with pytest.raises(ChildProcessError, match=r"two stopped: ValueError: no luck \(all of it is in .*two.log\)"):
        side_by_side({"one": (work_until_told, (saved,)), "two": (fail_later, (saved,))}, tmp_path)
    assert saved.read_text() == "saved at SIGTERM"


def test_a_job_that_somebody_else_stopped_is_not_done(tmp_path):
    with pytest.raises(ChildProcessError, match="one stopped: told to stop"):
        side_by_side({"one": (told_by_somebody_else, ())}, tmp_path)


def fail_later(saved) -> None:
    """Fails once the other one works."""
    while not saved.with_suffix(".began").exists():
        time.sleep(0.05)
    fail("no luck")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_all_save_and_leave(number, tmp_path):
    saved = [tmp_path / "one", tmp_path / "two"]

    def tell() -> None:
        while not all(path.with_suffix(".began").exists() for path in saved):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell).start()
    with pytest.raises(Interrupted, match=signal.Signals(number).name):
        side_by_side({path.name: (work_until_told, (path,)) for path in saved}, tmp_path)
    assert [path.read_text() for path in saved] == ["saved at SIGTERM"] * 2
