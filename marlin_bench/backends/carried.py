"""Libraries carried along in a folder, for machines without a network: MARLIN_BENCH_PEERS names it.

A user installs the packages themselves; where that cannot be done, backends fall back to files of this folder:
compiled operators as `.so.xz`, sets of prebuilt kernels as `.tar.xz`. They are unpacked once into the cache, under the
digest of the packed file, and loaded from there. Wheels of the folder are installed as any other
(`pip install --no-index --no-deps --target SITE FOLDER/wheels/*.whl`, SITE on PYTHONPATH).
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from marlin_bench.cache import cache_folder

VARIABLE = "MARLIN_BENCH_PEERS"
_CHUNK = 1 << 24


def folder() -> Path | None:
    """The folder that the environment names, None where it names none."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def complaint() -> str | None:
    """One sentence when the variable names something that is no folder."""
    named = folder()
    return None if named is None or named.is_dir() else f"{VARIABLE} names {named}, which is no folder"


def path(relative: str) -> Path | None:
    """A file of the folder, None where it is not there."""
    named = folder()
    if named is None or not (named / relative).is_file():
        return None
    return named / relative


def digest(relative: str) -> str:
    """12 hex digits of a file's content: what versions a library that is carried without its package."""
    return _digest(_existing(relative))


@cache
def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def _existing(relative: str) -> Path:
    found = path(relative)
    if found is None:
        raise FileNotFoundError(complaint() or f"{relative} is not in the folder that {VARIABLE} names")
    return found


def unpacked(relative: str) -> Path:
    """The content of a packed file: a file for `.xz`, a folder for `.tar.xz`; OSError where that cannot be had."""
    packed = _existing(relative)
    place = cache_folder("peers") / _digest(packed)
    content = place / packed.name.removesuffix(".xz").removesuffix(".tar")
    if content.exists():
        return content
    place.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=place))
    try:
        fresh = scratch / content.name
        if packed.name.endswith(".tar.xz"):
            with tarfile.open(packed) as archive:
                archive.extractall(fresh, filter="data")
        else:
            _decompress(packed, fresh)
        _move(fresh, content)
    except lzma.LZMAError as error:
        raise OSError(f"{packed} cannot be unpacked ({error})") from error
    except tarfile.TarError as error:
        raise OSError(f"{packed} cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return content


def _decompress(packed: Path, target: Path) -> None:
    """Unpack, leaving long stretches of nought as holes: libraries cut down to one architecture are mostly that."""
    with lzma.open(packed) as source, target.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            if chunk.count(0) == len(chunk):
                sink.seek(len(chunk), os.SEEK_CUR)
            else:
                sink.write(chunk)
        sink.truncate(sink.tell())


def _move(fresh: Path, content: Path) -> None:
    try:
        fresh.rename(content)
    except OSError:
        if not content.exists():  # else another process was faster with the same content
            raise
