"""Builds what is compiled where it runs, once: results are kept on disk under a key of all that went into them."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path


SOURCES = Path(__file__).parent / "csrc"

# Vectors for the machine at hand, fused multiply-adds, and otherwise exact: no -ffast-math, which would also change
# how the rest of the process treats tiny numbers.
CXX_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
)


# Of what is built here for here, and of what is built ahead for any machine of the last ten years.
NATIVE_FLAGS = ("-march=native",)
PORTABLE_FLAGS = ("-march=x86-64-v3",) if platform.machine() == "x86_64" else ()
BUILT_AHEAD = Path(__file__).parent / "built_ahead"
# A compiler takes seconds, nvcc up to minutes.
_MAX_SECONDS = 900


class BuildError(RuntimeError):
    """Something could not be built; the message says why."""


def cached(key: bytes, suffix: str, build: Callable[[], bytes]) -> Path:
    """File with what `build` returns, which is called only if no earlier process has left it there whole.

    The file appears at once under its final name, so processes that build at the same time do not disturb each other.

    Args:
        key: All that the result depends on.
        suffix: Of the file's name.
        build: Makes the content.

    Raises:
        BuildError: If `build` does, or the file cannot be written.
    """
    path = _kept(cache_folder(), key, suffix)
    return path if path is not None else _keep(cache_folder(), key, suffix, build())


def _kept(folder: Path, key: bytes, suffix: str) -> Path | None:
    """File of a key, as it was written; damaged ones, which may end the process that loads them, are removed."""
    for path in sorted(folder.glob(f"{_digest(key)}-*{suffix}")):
        try:
            if path.name == _name(key, path.read_bytes(), suffix):
                return path
            path.unlink()
        except OSError:
            continue  # not ours to read or to remove: as if it were not there
    return None


def _keep(folder: Path, key: bytes, suffix: str, content: bytes) -> Path:
    path = folder / _name(key, content, suffix)
    try:
        _write_at_once(path, content)
    except OSError as error:
        raise BuildError(f"{path} could not be written: {error}") from error
    return path


def _name(key: bytes, content: bytes, suffix: str) -> str:
    """Name of a file that tells what it was made of and what is in it."""
    return f"{_digest(key)}-{_digest(content)}{suffix}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _write_at_once(path: Path, content: bytes) -> None:
    # Not a temporary file itself, which nobody else may read: what is built ahead is for all users of a machine.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        partial.write_bytes(content)
        os.replace(partial, path)


@functools.cache
def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/classquery`, by default in `~/.cache`; where nothing can be written, one for this process."""
    # Without a home directory `~` stays as it is.
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "classquery"
    if not (folder.is_absolute() and _is_writable(folder)):
        folder = Path(_temporary_folder().name)
    return folder


def _is_writable(folder: Path) -> bool:
    # Tried out, since permissions alone do not tell.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    # Kept until the process ends, and removed then.
    return tempfile.TemporaryDirectory(prefix="classquery-")


def compiler() -> list[str] | None:
    """Command of the C++ compiler: `$CXX`, or the first on the path; None if there is none.

    Raises:
        BuildError: If `$CXX` has a quote that is not closed.
    """
    if command := os.environ.get("CXX", "").strip():
        try:
            return shlex.split(command)
        except ValueError as error:
            raise BuildError(f"CXX is no command: {error}") from error
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


@functools.cache
def why_not_loaded(name: str) -> str | None:
    """Why a C++ file in `SOURCES` cannot run here, or None if it can; builds it at the first call."""
    try:
        load_library(name)
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def load_library(name: str) -> ctypes.CDLL:
    """Functions of a C++ file in `SOURCES`; builds it at the first call.

    Raises:
        BuildError: If there is no library for this machine, and none can be built.
    """
    path = cpp_library(SOURCES / name)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} could not be loaded: {error}") from error


def cpp_library(source: Path) -> Path:
    """Shared library of a C++ file in `SOURCES`, built ahead or now for this machine.

    Raises:
        BuildError: If there is none and no compiler, or it fails.
    """
    if _runs_portable_code() and (library := _kept(BUILT_AHEAD, _key_ahead(source), ".so")):
        return library
    command = [*_compiler_command(), *CXX_FLAGS, *NATIVE_FLAGS]
    # The macros tell compilers and processors apart: the same cache may serve different machines.
    macros = run_command([*command, "-dM", "-E", "-x", "c++", os.devnull])
    key = b"\0".join([macros, shlex.join(command).encode(), *_contents(source)])
    return cached(key, ".so", lambda: compile_library(command, source))


def build_ahead(source: Path) -> Path:
    """Put the shared library of a C++ file in `SOURCES` into the package, for machines without a compiler.

    It goes with any version of PyTorch and Python, and any processor of this family; on x86-64, one with AVX2.

    Raises:
        BuildError: If there is no compiler, it fails, or the package cannot be written to.
    """
    content = compile_library([*_compiler_command(), *CXX_FLAGS, *PORTABLE_FLAGS], source)
    try:
        BUILT_AHEAD.mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"{BUILT_AHEAD} could not be made: {error}") from error
    return _keep(BUILT_AHEAD, _key_ahead(source), ".so", content)


def _key_ahead(source: Path) -> bytes:
    return b"\0".join([platform.machine().encode(), *_contents(source)])


def _contents(source: Path) -> list[bytes]:
    return [path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))]


def _runs_portable_code() -> bool:
    import torch  # takes seconds, which help texts do without

    return not PORTABLE_FLAGS or torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def _compiler_command() -> list[str]:
    if os.name != "posix":
        raise BuildError("the C++ sources are for GCC and Clang on Linux and macOS")
    command = compiler()
    if command is None:
        raise BuildError("no C++ compiler found; install g++ or clang++, or set CXX")
    return command


def compile_library(command: list[str], source: Path) -> bytes:
    """Content of the shared library that a compiler's command makes of a source.

    Raises:
        BuildError: If the command fails, or leaves nothing or half a library.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        run_command([*command, str(source), "-o", str(library)])
        content = library.read_bytes() if library.is_file() else b""
    if not content or _is_cut(content):
        raise BuildError(f"`{shlex.join(command)}` said nothing, but left {len(content)} bytes that are no library")
    return content


def _is_cut(library: bytes) -> bool:
    """Whether the end of a library is missing: its table of sections, where it is in the format ELF of 64 bits."""
    if not library.startswith(b"\x7fELF\x02\x01"):
        return False
    if len(library) < 64:
        return True
    (start,), (size, count) = struct.unpack_from("<Q", library, 40), struct.unpack_from("<HH", library, 58)
    return start + size * count > len(library)


def run_command(command: list[str]) -> bytes:
    """Output of a command.

    Raises:
        BuildError: If it cannot be started, fails or does not end.
    """
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=_MAX_SECONDS).stdout
    except OSError as error:
        raise BuildError(f"{command[0]} could not be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"`{shlex.join(command)}` had not ended after {_MAX_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip()
        raise BuildError(f"`{shlex.join(command)}` failed:\n{message[-2000:]}") from error
