"""What doctor says on machines that have, lack or half-have a GPU."""

from collections import namedtuple

import pytest

from marlin_bench import doctor, nvml

Usage = namedtuple("Usage", "total used free")


def by_name(found):
    return {finding.name: finding for finding in found}


@pytest.fixture
def no_gpu(monkeypatch):
    def refuse():
        raise nvml.NvmlError("nvmlInit: NVML Shared Library Not Found")

    monkeypatch.setattr(nvml, "device_uuids", refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def pretend_gpu(monkeypatch, facts, others=()):
    monkeypatch.setattr(nvml, "device_uuids", lambda: ["GPU-1"])
    monkeypatch.setattr(nvml, "read_facts", lambda uuid: facts)
    monkeypatch.setattr(doctor, "_compute_process_ids", lambda uuid: list(others))
    monkeypatch.setattr(doctor, "_clocks", lambda uuid: [])


def test_without_a_gpu_nothing_fails_and_the_way_on_is_named(no_gpu, tmp_path):
    found = by_name(doctor.examine(tmp_path))
    assert not [finding for finding in found.values() if finding.state == "fail"]
    assert found["GPU"].state == "warn"
    assert "smoke" in found["GPU"].remedy
    assert found["torch"].state == "ok"


def test_peers_are_counted_and_a_folder_that_is_none_fails(no_gpu, monkeypatch, tmp_path):
    monkeypatch.delenv("MARLIN_BENCH_PEERS", raising=False)
    peers = by_name(doctor.examine(tmp_path))["peers"]
    assert peers.state == "ok"
    assert "kernels of other projects" in peers.found
    assert "list backends" in peers.remedy
    monkeypatch.setenv("MARLIN_BENCH_PEERS", str(tmp_path / "nowhere"))
    peers = by_name(doctor.examine(tmp_path))["peers"]
    assert peers.state == "fail"
    assert f"{tmp_path / 'nowhere'}, which is no folder" in peers.found


def test_a_healthy_gpu_is_named_with_its_driver(monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, nvml.Facts(name="NVIDIA H200", driver="580.1", ecc=True, persistence=True))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = by_name(doctor.examine(tmp_path))
    assert found["GPU"].found == "NVIDIA H200, driver 580.1"
    assert found["GPU ECC"].found.startswith("on")
    assert {found[name].state for name in ("GPU", "torch", "GPU ECC", "GPU persistence", "GPU processes")} == {"ok"}


def test_a_torch_that_cannot_use_the_gpu_fails_with_a_remedy(monkeypatch, tmp_path):
    pretend_gpu(monkeypatch, nvml.Facts(name="NVIDIA H200"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    assert by_name(doctor.examine(tmp_path))["torch"].remedy.startswith("install torch for CUDA")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    torch = by_name(doctor.examine(tmp_path))["torch"]
    assert torch.state == "fail"
    assert "CUDA_VISIBLE_DEVICES" in torch.remedy


@pytest.mark.parametrize(("gpu", "state"), [(True, "fail"), (False, "warn")])
def test_missing_cupy_fails_only_where_there_is_a_gpu(monkeypatch, tmp_path, gpu, state, no_gpu):
    if gpu:
        pretend_gpu(monkeypatch, nvml.Facts())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = by_name(doctor.examine(tmp_path))
    assert found["CuPy"].state == found["NVRTC"].state == state
    assert "pip install" in found["CuPy"].remedy


def test_other_processes_persistence_and_slices_are_warned_about(monkeypatch, tmp_path, no_gpu):
    pretend_gpu(monkeypatch, nvml.Facts(persistence=False, mig=True), others=[4711])
    found = by_name(doctor.examine(tmp_path))
    assert "4711" in found["GPU processes"].found
    assert found["GPU persistence"].remedy == "sudo nvidia-smi -pm 1"
    assert {found[name].state for name in ("GPU processes", "GPU persistence", "GPU MIG")} == {"warn"}


@pytest.mark.parametrize(("free", "state"), [(40e6, "fail"), (900e6, "warn"), (2e9, "ok")])
def test_disk_space_is_judged_where_the_results_would_lie(monkeypatch, tmp_path, free, state, no_gpu):
    asked = []

    def usage(folder):
        asked.append(folder)
        return Usage(1, 1, free)

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert by_name(doctor.examine(tmp_path / "not" / "yet"))["disk"].state == state
    assert asked == [tmp_path]


def test_every_finding_that_is_not_ok_says_what_to_do(monkeypatch, tmp_path, no_gpu):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 1, 0))
    found = doctor.examine(tmp_path)
    assert [finding for finding in found if finding.state != "ok"]
    assert all(finding.remedy for finding in found if finding.state != "ok")
