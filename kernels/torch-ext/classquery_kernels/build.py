"""Builds what is compiled where it runs, once: results are kept on disk under a key of all that went into them."""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


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


class BuildError(RuntimeError):
    """Something could not be built; the message says why."""


def cached(key: bytes, suffix: str, build: Callable[[], bytes]) -> Path:
    """File with what `build` returns, which is called only if no earlier process has left it there.

    The file appears at once under its final name, so processes that build at the same time do not disturb each other.

    Args:
        key: All that the result depends on.
        suffix: Of the file's name.
        build: Makes the content.

    Raises:
        BuildError: If `build` does, or the file cannot be written.
    """
    path = cache_folder() / f"{hashlib.sha256(key).hexdigest()[:24]}{suffix}"
    if not path.exists():
        content = build()
        try:
            _write_at_once(path, content)
        except OSError as error:
            raise BuildError(f"{path} could not be written: {error}") from error
    return path


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
    """Command of the C++ compiler: `$CXX`, or the first on the path; None if there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def cpp_library(source: Path) -> Path:
    """Shared library of a C++ file in `SOURCES`, built ahead or now for this machine.

    Raises:
        BuildError: If there is none and no compiler, or it fails.
    """
    if (library := _library_built_ahead(source)).exists() and _runs_portable_code():
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
    library = _library_built_ahead(source)
    content = compile_library([*_compiler_command(), *CXX_FLAGS, *PORTABLE_FLAGS], source)
    try:
        BUILT_AHEAD.mkdir(exist_ok=True)
        _write_at_once(library, content)
    except OSError as error:
        raise BuildError(f"{library} could not be written: {error}") from error
    return library


def _library_built_ahead(source: Path) -> Path:
    key = b"\0".join([platform.machine().encode(), *_contents(source)])
    return BUILT_AHEAD / f"{hashlib.sha256(key).hexdigest()[:24]}.so"


def _contents(source: Path) -> list[bytes]:
    return [path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))]


def _runs_portable_code() -> bool:
    return not PORTABLE_FLAGS or torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def _compiler_command() -> list[str]:
    if os.name != "posix":
        raise BuildError("the C++ sources are for GCC and Clang on Linux and macOS")
    command = compiler()
    if command is None:
        raise BuildError("no C++ compiler found; install g++ or clang++, or set CXX")
    return command


def compile_library(command: list[str], source: Path) -> bytes:
    """Content of the shared library that a compiler's command makes of a source."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        run_command([*command, str(source), "-o", str(library)])
        return library.read_bytes()


def run_command(command: list[str]) -> bytes:
    """Output of a command."""
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise BuildError(f"{command[0]} could not be started: {error}") from error
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip()
        raise BuildError(f"`{shlex.join(command)}` failed:\n{message[-2000:]}") from error
