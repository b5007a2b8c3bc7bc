"""The device a worker is given, among those that whoever started the tool was given."""

import pytest

from marlin_bench.executor import LocalSession, WorkerLostError, visible_device


@pytest.mark.parametrize(
    ("device", "shown", "expected"),
    [
        ("0", None, "0"),
        ("1", None, "1"),
        ("0", "2", "2"),
        ("1", "3, 5", "5"),
        ("1", "GPU-8f1c,GPU-02ab", "GPU-02ab"),
        ("GPU-77d0", "0,1", "GPU-77d0"),
    ],
)
def test_a_device_is_counted_among_the_visible_ones(device, shown, expected):
    assert visible_device(device, shown) == expected


@pytest.mark.parametrize(("device", "shown"), [("0", ""), ("1", "3"), ("0", "-1,0"), ("1", "2,-1,0")])
def test_a_device_that_is_not_shown_is_named_with_what_is(device, shown):
    with pytest.raises(WorkerLostError, match=rf"CUDA_VISIBLE_DEVICES='{shown}' leaves .* no {device}"):
        visible_device(device, shown)


def test_a_worker_is_started_with_the_device_of_its_job(monkeypatch):
    seen = {}

    def popen(command, **options):
        seen.update(options["env"])
        raise FileNotFoundError("enough seen")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr("marlin_bench.executor.subprocess.Popen", popen)
    with pytest.raises(FileNotFoundError, match="enough seen"):
        LocalSession("cuda:1", ["worker"])
    assert seen["CUDA_VISIBLE_DEVICES"] == "7"
