"""Device names from the command line, and slugs for folders."""

import pytest

from marlin_bench.device import DeviceNameError, device_names, slug


@pytest.mark.parametrize(
    ("option", "kind", "names"),
    [
        (None, "cpu", ["cpu"]),
        (None, "cuda", ["cuda:0"]),
        ("cpu", "cuda", ["cpu"]),
        ("0", "cuda", ["cuda:0"]),
        ("0,1", "cuda", ["cuda:0", "cuda:1"]),
        ("GPU-5fa1c5d2-0c1c-9c1b", "cuda", ["cuda:GPU-5fa1c5d2-0c1c-9c1b"]),
    ],
)
def test_devices_are_named(option, kind, names):
    assert device_names(option, kind) == names


@pytest.mark.parametrize("option", ["first", "0;1", "0,0", "-1"])
def test_other_words_are_refused_in_a_sentence(option):
    with pytest.raises(DeviceNameError, match=f"--device '{option}'"):
        device_names(option, "cuda")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 3090", "geforce-rtx-3090"),
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "intel-xeon"),
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-64-core"),
    ],
)
def test_slugs_are_short_and_stable(name, expected):
    assert slug(name) == expected
