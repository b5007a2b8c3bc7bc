"""The protocol with stand-ins: how backends are found, what is said of missing ones, what is counted and recorded."""

import dataclasses
import importlib.metadata
import json
import lzma
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import simulated
import torch
from cli_call import caller
from simulated import Simulated, SimulatedMachine, TimedLaunch

from marlin_bench import tuning
from marlin_bench.backends import ENTRY_POINT_GROUP, backend_names, carried, load_backend, register
from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.protocol import (
    Backend,
    DeviceTraits,
    EightBitActivations,
    EightBitBackend,
    Missing,
    Packed,
)
from marlin_bench.entrant import Job, LayerCache
from marlin_bench.measure import measure_cell
from marlin_bench.operands import LayerKey, make_weights
from marlin_bench.plan import Cell
from marlin_bench.problem import FP8, Problem, fp4, int4, nf4, parse_format
from marlin_bench.quantize import QuantizedWeights
from marlin_bench.record import Flag, Record, Status
from marlin_bench.suite_format import Sampling
from marlin_bench.torch_state import read_state, watched


class Collector:
    def __init__(self):
        self.records, self.phases = [], []

    def phase(self, backend, phase):
        self.phases.append((backend, phase))

    def block(self, timer, backend, block):
        pass

    def verified(self, backend, check):
        pass

    def record(self, record):
        self.records.append(Record.model_validate(record.model_dump()))


def measure(*backends, M=5, machine=None, **options):
    cell = Cell("layer/g128/M5", "suite", "layer", M, 128, 256, 128, backends, 7, ("kernel",))
    sampling = Sampling(min_blocks=6, max_blocks=6, block_seconds=0.001)
    collector = Collector()
    job = Job(cell, backends, ("sim_fp16",), sampling, run="run", device="simulated", **options)
    measure_cell(job, machine or SimulatedMachine(), LayerCache(), collector)
    return {record.backend: record for record in collector.records}


def stand_in(name, **attributes):
    """A registered simulated backend with some attributes of its own."""
    return register(type(name, (Simulated,), {"name": name, **attributes}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(carried.VARIABLE, raising=False)


# -- discovery ---------------------------------------------------------------------------------------------------------


class FakePoint:
    group = ENTRY_POINT_GROUP
    dist = None

    def __init__(self, name, loaded):
        self.name, self.value, self._loaded = name, f"elsewhere:{name}", loaded

    def load(self):
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def entry_point(monkeypatch):
    """Declare a backend as another package would."""
    points = []
    monkeypatch.setattr("marlin_bench.backends.entry_points", lambda group: points)
    load_backend.cache_clear()

    def declare(name, loaded):
        points.append(FakePoint(name, loaded))
        return points[-1]

    yield declare
    load_backend.cache_clear()


def test_every_registered_backend_keeps_to_the_protocol_without_its_package_or_a_gpu():
    problem, device = Problem(16, 4096, 4096), DeviceTraits("cuda", "H200", (9, 0), 132, 232448, 50 << 20)
    for name in backend_names():
        backend = load_backend(name)
        assert isinstance(backend, Backend)
        assert backend.name == name
        assert backend.summary
        missing = backend.missing()
        assert missing is None or (missing.reason and missing.remedy)
        assert parse_format(backend.format(problem).name) == backend.format(problem)
        sentence = None if missing else backend.unsupported(problem, device)
        assert sentence is None or sentence.strip()


def shipped_peers():
    loaded = map(load_backend, backend_names())
    return [backend for backend in loaded if isinstance(backend, Peer) and type(backend).__module__ != __name__]


def test_every_peer_tells_its_project_its_licence_and_the_batches_it_is_meant_for():
    peers = shipped_peers()
    assert len(peers) >= 12
    for backend in peers:
        assert backend.project.startswith("https://"), backend.name
        assert backend.license, backend.name
        assert backend.meant_for, backend.name
        assert backend.__doc__, backend.name
        assert backend.packages, backend.name


def of_other_people():
    """Peers, and what torch brings: whatever is not ours."""
    loaded = map(load_backend, backend_names())
    return [one for one in loaded if one.project and one.device == "cuda" and type(one).__module__ != __name__]


def test_every_docstring_tells_project_licence_weights_batches_and_a_defect_with_its_number():
    import inspect
    import re

    assert len(of_other_people()) >= 21
    for backend in of_other_people():
        text = " ".join((type(backend).__dict__.get("__doc__") or "").split())  # its own, not that of its base
        source = inspect.getsource(inspect.getmodule(type(backend)))
        licence = backend.license.split(" ")[0].removesuffix("-Clause")
        assert licence in text, backend.name
        assert re.search(r"\d+ bits each|bits", text), backend.name
        assert re.search(r"[Mm]eant for", text), backend.name
        assert re.search(r"[\w-]+/[\w-]+#\d+", text), backend.name
        assert backend.project.removeprefix("https://github.com/").split("/")[0] in source, backend.name


def test_another_package_adds_a_backend_by_entry_point(entry_point):
    class Foreign(Simulated):
        name = "foreign"

    entry_point("foreign", Foreign)
    assert "foreign" in backend_names()
    assert isinstance(load_backend("foreign"), Foreign)


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (ImportError("No module named 'nothing'"), "No module named 'nothing'"),
        (OSError("libcudart.so.12: cannot open shared object file"), "libcudart.so.12"),
        (dict, "no class derived from"),
        (simulated.SimInt4, "calls itself sim_int4"),
    ],
)
def test_an_entry_point_that_cannot_be_loaded_is_missing_with_its_reason(entry_point, loaded, reason):
    entry_point("broken", loaded)
    missing = load_backend("broken").missing()
    assert reason in missing.reason
    assert missing.remedy == "reinstall the package that declares it"  # whose name this point does not tell
    record = measure("sim_fp16", "broken")["broken"]
    # it says cuda or cpu as any backend; whatever the device, it leaves a record and no traceback
    assert record.status in {Status.MISSING, Status.UNSUPPORTED}


def test_a_package_whose_backend_cannot_be_loaded_comes_with_one_command(entry_point):
    entry_point("broken", ImportError("No module named 'nothing'")).dist = SimpleNamespace(name="their-package")
    assert load_backend("broken").missing().remedy == "pip install --force-reinstall --no-deps their-package"


def test_the_parent_starts_its_workers_before_it_has_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, marlin_bench.run, marlin_bench.cli.run; sys.exit('torch' in sys.modules)"],
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0


# -- what is missing ---------------------------------------------------------------------------------------------------


class Absent(Peer, Simulated):
    """A peer whose package nobody has."""

    name = "absent"
    extra = "absent"
    packages = (Package("no-such-package-3f", "no_such_module_3f", "1.2", carried="absent/kernels.so.xz"),)

    missing = Peer.missing
    version = Peer.version


register(Absent)


def test_a_missing_package_is_named_with_the_one_command_that_brings_it():
    missing = load_backend("absent").missing()
    assert missing == Missing("no-such-package-3f is not installed", "pip install 'marlin-bench[absent]'")
    record = measure("sim_fp16", "absent")["absent"]
    assert record.status is Status.MISSING
    assert record.reason == "no-such-package-3f is not installed: pip install 'marlin-bench[absent]'"
    assert record.backend_version == "missing"


def test_our_own_kernels_say_what_loads_them(monkeypatch):
    monkeypatch.setattr("marlin_bench.backends.cuda_kernel.find_spec", lambda name: None)
    for name in ("naive_w4a16", "marlin", "marlin_bf16", "marlin_hopper", "marlin_sparse", "marlin_sparse_bf16"):
        missing = load_backend(name).missing()
        assert missing is not None, name
        assert missing.reason == "CuPy is not installed"
        assert missing.remedy.startswith("pip install 'marlin-bench[cuda13]'")


def test_list_backends_shows_the_command_and_is_silent_about_nothing(monkeypatch, capsys, tmp_path):
    code, out, err = caller(monkeypatch, capsys, tmp_path)("list", "backends", "--json")
    assert code == 0
    assert err == ""
    listed = {line["backend"]: line for line in json.loads(out)}
    assert set(listed) >= {"cublas_fp16", "humming", "tinygemm_cpu"}
    assert listed["tinygemm_cpu"]["here"] == "yes"
    assert listed["tinygemm_cpu"]["activations"] == listed["tinygemm_cpu"]["outputs"] == "bf16"
    assert (listed["w4a8_int8"]["activations"], listed["w4a8_int8"]["outputs"]) == ("bf16 as int8", "bf16")
    peer = load_backend("humming")
    if peer.missing() is not None:
        assert "pip install 'marlin-bench[humming]'" in listed["humming"]["here"]


def test_every_extra_that_a_peer_names_exists_and_asks_for_the_version_that_the_peer_needs():
    metadata = tomllib_of_the_project()["project"]["optional-dependencies"]
    for backend in shipped_peers():
        if not backend.extra:
            assert backend.remedy().startswith("pip install "), backend.name
            continue
        wanted = " ".join(metadata[backend.extra])
        package = backend.packages[0]
        bound = f",<{package.below}" if package.below else ""
        assert f"{package.distribution}>={package.at_least}{bound}" in wanted.split(), backend.name


def tomllib_of_the_project():
    import tomllib
    from pathlib import Path

    return tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


def test_an_old_package_is_missing_with_both_versions(monkeypatch):
    package = Package("torch", "torch", "99.1")
    assert package.complaint() == f"torch {importlib.metadata.version('torch')} is older than 99.1"
    assert Package("torch", "torch", "1.0").complaint() is None
    monkeypatch.setattr("marlin_bench.backends.peer.version", lambda name: "0.6.0.post2")
    assert Package("x", "torch", "0.6").complaint() is None
    assert Package("x", "torch", "0.6.1").complaint() == "x 0.6.0.post2 is older than 0.6.1"
    assert Package("x", "torch", "0.5", below="0.6.1").complaint() is None
    too_new = Package("x", "torch", "0.5", below="0.6").complaint()
    assert too_new == "x 0.6.0.post2 is newer than what its operators are called for, below 0.6"


def test_a_library_that_does_not_load_is_missing_and_costs_nobody_else():
    def load(self):
        raise OSError("undefined symbol: _ZN3c10\nin some.so")

    stand_in("unloadable_library", load=load, remedy=lambda self: "pip install --force-reinstall some")
    records = measure("sim_fp16", "unloadable_library", "sim_int4")
    assert records["unloadable_library"].status is Status.MISSING
    assert records["unloadable_library"].reason == (
        "it cannot be loaded (undefined symbol: _ZN3c10 in some.so): pip install --force-reinstall some"
    )
    assert records["sim_int4"].status is Status.OK


# -- the folder for machines without a network -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "peers"
    (place / "absent").mkdir(parents=True)
    monkeypatch.setenv(carried.VARIABLE, str(place))
    return place


def test_a_carried_library_does_in_place_of_the_package_and_is_versioned_by_its_content(folder):
    assert load_backend("absent").missing() is not None
    (folder / "absent" / "kernels.so.xz").write_bytes(lzma.compress(b"code"))
    assert load_backend("absent").missing() is None
    assert load_backend("absent").version() == f"no-such-package-3f carried {carried.digest('absent/kernels.so.xz')}"


def test_a_packed_library_is_unpacked_once_with_its_holes(folder):
    content = b"head" + bytes(1 << 25) + b"tail"
    (folder / "absent" / "kernels.so.xz").write_bytes(lzma.compress(content))
    first = carried.unpacked("absent/kernels.so.xz")
    assert first.read_bytes() == content
    assert first.name == "kernels.so"
    (folder / "absent" / "kernels.so.xz").touch()
    assert carried.unpacked("absent/kernels.so.xz") == first
    assert [path.name for path in first.parent.iterdir()] == ["kernels.so"]  # no scratch is left


def test_a_packed_set_of_kernels_becomes_a_folder(folder, tmp_path):
    (tmp_path / "a.cubin").write_bytes(b"cubin")
    with tarfile.open(folder / "absent" / "prebuilt.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "a.cubin", "set/a.cubin")
    assert (carried.unpacked("absent/prebuilt.tar.xz") / "set" / "a.cubin").read_bytes() == b"cubin"


def test_what_is_not_there_or_damaged_is_one_sentence(folder, monkeypatch):
    (folder / "absent" / "kernels.so.xz").write_bytes(b"not xz")
    with pytest.raises(OSError, match="cannot be unpacked"):
        carried.unpacked("absent/kernels.so.xz")
    with pytest.raises(OSError, match="is not in the folder"):
        carried.unpacked("absent/other.so.xz")
    monkeypatch.setenv(carried.VARIABLE, str(folder / "nowhere"))
    assert "is no folder" in load_backend("absent").missing().reason


def test_the_page_of_peers_has_every_one_with_its_licence():
    from pathlib import Path

    page = (Path(__file__).parent.parent / "docs" / "peers.md").read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for backend in shipped_peers():
        assert backend.license.split(" ")[0] in lines[backend.name], backend.name


# -- accounting --------------------------------------------------------------------------------------------------------


def test_stored_bytes_are_those_of_the_packed_tensors():
    record = measure("sim_fp16", "sim_int4")["sim_int4"]
    assert record.stored_bytes == 256 * 128 * 2  # the stand-in holds FP16 whatever its format says
    assert record.format == "int4_g128"


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (nf4(64), 4.5),
        (fp4(128), 4.25),
        (FP8, 8 + 32 / 4096),
        (int4(128), 4.125),
        (int4(128, zero_points=True), 4.15625),
    ],
)
def test_bits_per_weight_of_the_formats_of_peers(fmt, bits):
    assert fmt.bits_per_weight(4096) == bits
    assert parse_format(fmt.name) == fmt


def test_whoever_quantises_for_itself_is_judged_by_what_it_holds_and_its_error_to_fp16_is_told():
    def pack(self, weights):
        held = (weights.dequantized().float() * 32).round() / 32  # a quantiser of its own, and a bad one
        return Packed({"weights": held.half()}, reference=lambda columns: held[:, columns],
                      extra={"shape": (weights.K, weights.N), "group": weights.group_size})  # fmt: skip

    stand_in("own_quantiser", pack=pack)
    records = measure("sim_fp16", "own_quantiser")
    record = records["own_quantiser"]
    assert record.status is Status.OK
    assert record.checks[0].mean_error < 1e-3
    assert record.canonical_error > 0.1
    assert records["sim_fp16"].canonical_error is None


@pytest.mark.parametrize("choice", [{"weights": "coarse"}, {"weights": "canonical"}])
def test_a_choice_that_rounds_weights_further_is_judged_by_those(choice):
    def coarse(weights):
        return (weights.dequantized().float() * 32).round().half() / 32

    def pack(self, weights):
        held = coarse(weights) if choice["weights"] == "coarse" else weights.dequantized()
        return Packed({"weights": held}, reference=lambda columns: coarse(weights)[:, columns],
                      extra={"shape": (weights.K, weights.N), "group": weights.group_size})  # fmt: skip

    def held_weights(self, packed, choice):
        return packed.reference if choice["weights"] == "coarse" else None

    stand_in("rounding_by_choice", pack=pack, held_weights=held_weights, tune=lambda *_: choice)
    record = measure("sim_fp16", "rounding_by_choice")["rounding_by_choice"]
    assert record.status is Status.OK
    assert record.checks[0].mean_error < 1e-3
    assert (record.canonical_error is not None) == (choice["weights"] == "coarse")


def test_weights_that_are_right_by_their_own_account_alone_are_wrong():
    def pack(self, weights):
        held = weights.dequantized().float().roll(1, 0)  # other weights, honestly declared
        return Packed({"weights": held}, reference=lambda columns: held[:, columns],
                      extra={"shape": (weights.K, weights.N), "group": weights.group_size})  # fmt: skip

    stand_in("sim_other_weights", pack=pack)
    record = measure("sim_fp16", "sim_other_weights")["sim_other_weights"]
    assert record.status is Status.WRONG
    assert "off that of the weights it was given" in record.reason
    assert record.canonical_error > 1


def test_a_result_of_its_own_is_what_is_checked():
    def launch(self, packed, activations, output, choice):
        return TimedLaunch(self.seconds(activations, output, packed), lambda: self.product(packed, activations))

    def wrong(self, packed, activations, output, choice):
        return TimedLaunch(1e-5, lambda: self.product(packed, activations) * 0.9)

    def wrong_shape(self, packed, activations, output, choice):
        return TimedLaunch(1e-5, lambda: self.product(packed, activations)[:, :-1])

    def remembered(self, packed, activations, output, choice):
        kept = self.product(packed, activations)
        return TimedLaunch(self.seconds(activations, output, packed), lambda: kept)

    stand_in("own_result", launch=launch)
    stand_in("own_wrong_result", launch=wrong)
    stand_in("own_wrong_shape", launch=wrong_shape)
    stand_in("own_remembered_result", launch=remembered)
    records = measure("sim_fp16", "own_result", "own_wrong_result", "own_wrong_shape", "own_remembered_result")
    assert records["own_result"].status is Status.OK
    assert records["own_wrong_result"].status is Status.WRONG
    assert "[5, 127] where torch.float16 [5, 128] belongs" in records["own_wrong_shape"].reason
    assert "not written (after timing)" in records["own_remembered_result"].reason


# -- 8-bit activations -------------------------------------------------------------------------------------------------


class SimEightBit(EightBitBackend, Simulated):
    """int8 rows times the canonical weights; its quantiser takes 3 µs."""

    name = "sim_eight_bit"
    compute_dtype = "int8"
    launch = EightBitBackend.launch
    stale = False

    def quantize(self, activations):
        codes = torch.empty(activations.shape, dtype=torch.int8)
        scales = torch.empty(activations.shape[0], 1)
        done = []

        def fill():
            if self.stale and done:
                return
            done.append(True)
            scales.copy_(activations.float().abs().amax(1, keepdim=True) / 127)
            codes.copy_((activations.float() / scales).round())

        return EightBitActivations(
            {"codes": codes, "scales": scales}, TimedLaunch(3e-6, fill), lambda: codes.float() * scales
        )

    def multiply(self, packed, given, output, choice):
        def work():
            left = given.tensors["codes"].double() * given.tensors["scales"].double()
            output.copy_((left @ packed.tensors["weights"].double()).half())

        return TimedLaunch(self.seconds(output, output, packed), work)


register(SimEightBit)


def test_8_bit_activations_are_quantised_beside_the_product_and_timed_apart():
    record = measure("sim_fp16", "sim_eight_bit")["sim_eight_bit"]
    assert record.status is Status.OK
    assert record.activation_quantization_s == pytest.approx(3e-6)
    assert (record.activation_dtype, record.output_dtype) == ("int8", "fp16")
    assert record.checks[0].mean_error < 1e-3  # against its own quantised operands
    assert 1e-3 < record.canonical_error < 0.1  # against the FP16 product
    assert max(record.times) < 1e-5


def test_an_8_bit_backend_that_keeps_old_activations_is_wrong():
    register(type("Stale", (SimEightBit,), {"name": "sim_stale_eight_bit", "stale": True}))
    # its own account of what the tensors stand for is as stale as they are: it is held against what it was given
    record = measure("sim_fp16", "sim_stale_eight_bit")["sim_stale_eight_bit"]
    assert record.status is Status.WRONG
    assert "8-bit activations" in record.reason
    assert "(after timing)" in record.reason


def test_the_physical_floor_of_8_bit_products_is_half_that_of_16_bit():
    machine = SimulatedMachine()
    machine.limits = dataclasses.replace(machine.limits, memory_bandwidth=None)
    fast = 0.7 * machine.limits.floor_seconds(0.0, 2 * 5 * 128 * 256, None)

    def multiply(self, packed, given, output, choice):
        work = SimEightBit.multiply(self, packed, given, output, choice).work
        return TimedLaunch(fast, work)

    def launch(self, packed, activations, output, choice):
        return TimedLaunch(fast, Simulated.launch(self, packed, activations, output, choice).work)

    register(type("FastEight", (SimEightBit,), {"name": "sim_fast_eight_bit", "multiply": multiply}))
    stand_in("sim_fast_sixteen_bit", launch=launch)
    records = measure("sim_fp16", "sim_fast_eight_bit", "sim_fast_sixteen_bit", machine=machine)
    assert records["sim_fast_eight_bit"].status is Status.OK
    assert records["sim_fast_sixteen_bit"].status is Status.IMPOSSIBLE


# -- tuning ------------------------------------------------------------------------------------------------------------


class Tuned(Simulated):
    """Three tiles, of which one does not run and the last is the fastest."""

    name = "sim_tuned"

    def candidates(self, problem, device, effort):
        tiles = ("64", "32", "128", "256")
        return [{"tile": tile} for tile in (tiles if effort == "full" else tiles[:3])]

    def launch(self, packed, activations, output, choice):
        if choice["tile"] == "32":
            raise RuntimeError("out of shared memory")
        launch = super().launch(packed, activations, output, choice)
        return TimedLaunch(launch.seconds * 64 / int(choice["tile"]) * 4, launch.work)


register(Tuned)


def test_the_fastest_candidate_runs_and_the_record_says_what_the_search_cost():
    record = measure("sim_fp16", "sim_tuned")["sim_tuned"]
    assert record.choice == {"tile": "128"}
    assert (record.tuning.effort, record.tuning.tried, record.tuning.rejected) == ("quick", 2, 1)
    assert record.tuning.seconds > 0
    assert record.tuning.first_call_s > 0
    assert not record.tuning.cached


def test_the_effort_is_the_suite_s_and_the_choice_is_kept_on_disk():
    assert measure("sim_fp16", "sim_tuned", effort="full")["sim_tuned"].choice == {"tile": "256"}
    again = measure("sim_fp16", "sim_tuned", effort="full")["sim_tuned"]
    assert again.tuning.cached
    assert (again.choice, again.tuning.seconds, again.tuning.tried) == ({"tile": "256"}, 0.0, 0)
    assert not measure("sim_fp16", "sim_tuned", effort="quick")["sim_tuned"].tuning.cached
    assert not measure("sim_fp16", "sim_tuned", effort="full", M=6)["sim_tuned"].tuning.cached


def question(candidates, version="1"):
    return tuning.Question("b", version, "d", Problem(1, 256, 256), "quick", candidates)


def test_a_search_ends_when_its_time_is_spent_but_not_before_one_is_known():
    now = iter(range(100))
    tried = []

    def seconds_of(choice):
        tried.append(choice["tile"])
        if choice["tile"] == "0":
            raise ValueError("no")
        return 1.0 / int(choice["tile"])

    candidates = [{"tile": str(tile)} for tile in range(10)]
    choice, told = tuning.search(question(candidates), seconds_of, limit_s=2.5, clock=lambda: float(next(now)))
    assert tried == ["0", "1", "2", "3"]
    assert choice == {"tile": "3"}
    assert (told.tried, told.rejected) == (3, 1)


def test_a_search_in_which_nothing_runs_gives_the_last_reason():
    def seconds_of(choice):
        raise RuntimeError(f"tile {choice['tile']} needs sm_100")

    with pytest.raises(RuntimeError, match="none of its 2 configurations runs; the last one: tile 2 needs sm_100"):
        tuning.search(question([{"tile": "1"}, {"tile": "2"}]), seconds_of, limit_s=1.0)


def test_a_backend_that_searches_for_itself_does_so_once_where_it_says_so():
    asked = []

    def tune(self, packed, activations, outputs, effort):
        asked.append(effort)
        return {"algorithm": str(len(asked))}

    stand_in("sim_asked_ever", tune=tune)
    stand_in("sim_asked_once", tune=tune, tune_is_kept=True)
    for expected in ("1", "2"):
        record = measure("sim_fp16", "sim_asked_ever")["sim_asked_ever"]
        assert (record.choice, record.tuning.cached) == ({"algorithm": expected}, False)
    first, second = (measure("sim_fp16", "sim_asked_once")["sim_asked_once"] for _ in range(2))
    assert first.choice == second.choice == {"algorithm": "3"}
    assert (first.tuning.cached, second.tuning.cached) == (False, True)
    assert second.tuning.seconds == 0.0
    assert measure("sim_fp16", "sim_asked_once", effort="full")["sim_asked_once"].choice == {"algorithm": "4"}
    assert load_backend("cusparselt_fp16").tune_is_kept


def test_another_version_or_a_damaged_file_is_searched_again():
    candidates = [{"tile": "1"}]
    tuning.search(question(candidates), lambda choice: 1.0, limit_s=1.0)
    assert tuning.search(question(candidates), lambda choice: 1.0, limit_s=1.0)[1].cached
    assert not tuning.search(question(candidates, version="2"), lambda choice: 1.0, limit_s=1.0)[1].cached
    question(candidates).path.write_text("{")
    assert not tuning.search(question(candidates), lambda choice: 1.0, limit_s=1.0)[1].cached


# -- settings of the process -------------------------------------------------------------------------------------------


def test_changed_settings_are_put_back_and_named():
    before = read_state()
    accumulates = torch.backends.cuda.matmul.allow_fp16_accumulation
    changed = set()
    with watched(changed):
        torch.set_default_dtype(torch.float64)
        torch.backends.cuda.matmul.allow_tf32 = not torch.backends.cuda.matmul.allow_tf32
        torch.set_grad_enabled(False)
        torch.set_num_threads(before["threads"] + 1)
        torch.set_default_device("meta")
        torch.backends.cuda.matmul.allow_fp16_accumulation = not accumulates
        torch.set_autocast_enabled("cpu", True)
    expected = {"default dtype", "TF32", "grad mode", "threads", "default device", "FP16 accumulation"}
    assert expected | {"autocast on cpu"} <= changed
    assert read_state() == before
    assert torch.backends.cuda.matmul.allow_fp16_accumulation is accumulates
    assert not torch.is_autocast_enabled("cpu")
    changed.clear()
    with watched(changed):
        torch.ones(3).sum()
    assert changed == set()


@pytest.mark.parametrize("where", ["load", "pack", "tune", "launch"])
def test_a_backend_that_changes_settings_is_flagged_and_its_neighbours_are_measured_as_if_alone(where):
    before = read_state()
    seen = []

    def change():
        torch.set_default_dtype(torch.float64)
        torch.backends.cuda.matmul.allow_tf32 = not before["TF32"]

    class Meddler(Simulated):
        name = f"sim_meddler_{where}"

        def load(self):
            if where == "load":
                change()

        def pack(self, weights):
            if where == "pack":
                change()
            return super().pack(weights)

        def tune(self, packed, activations, outputs, effort):
            if where == "tune":
                change()
            return {}

        def product(self, packed, activations):
            answer = super().product(packed, activations)
            if where == "launch":
                change()
            return answer

    class Witness(Simulated):
        name = f"sim_witness_{where}"

        def product(self, packed, activations):
            seen.append((torch.get_default_dtype(), torch.backends.cuda.matmul.allow_tf32))
            return super().product(packed, activations)

    register(Meddler)
    register(Witness)
    records = measure("sim_fp16", Meddler.name, Witness.name)
    assert Flag.CHANGED_SETTINGS in records[Meddler.name].flags
    assert records[Meddler.name].status is records[Witness.name].status is Status.OK
    assert records[Witness.name].flags == []
    assert set(seen) == {(before["default dtype"], before["TF32"])}
    assert read_state() == before


# -- the copies that rotate --------------------------------------------------------------------------------------------


def test_packed_weights_in_an_object_are_made_again_for_every_set():
    made = []

    def again():
        made.append(True)
        return Packed({"weights": torch.zeros(2)}, remake=again)

    copied = again().copy().copy()
    assert len(made) == 3
    assert copied.nbytes == 8


def test_canonical_weights_are_the_same_for_all():
    seen = []

    def pack(self, weights):
        seen.append(weights)
        return Simulated.pack(self, weights)

    stand_in("sim_seeing_1", pack=pack)
    stand_in("sim_seeing_2", pack=pack)
    measure("sim_fp16", "sim_seeing_1", "sim_seeing_2")
    expected = [make_weights(LayerKey(256, 128, 128, 7), index, "cpu") for index in range(2)]
    assert len(seen) == 4
    for weights in seen:
        assert isinstance(weights, QuantizedWeights)
        assert any(torch.equal(weights.codes, one.codes) for one in expected)
    assert dataclasses.is_dataclass(seen[0])
