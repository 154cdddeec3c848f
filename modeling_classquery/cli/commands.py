"""The commands by name, what each is for, and what it calls."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from classquery.data.hints import closest
from classquery.engine.run.help import format_help, wanted_help
from classquery.engine.run.tasks import SCRIPT, TASKS, Task


class Command(NamedTuple):
    """One of the commands.

    Attributes:
        group: Where it stands in the help.
        summary: What it does, in a line.
        call: Takes the arguments behind its name; returns the exit code, or None for 0.
    """

    group: str
    summary: str
    call: Callable[[Sequence[str]], int | None]


def run_task(task: Task, arguments: Sequence[str]) -> int:
    """Train, evaluate or detect; a help text takes nothing that has to be imported for seconds."""
    extent = wanted_help(arguments)
    if extent:
        print(format_help(task, extent), end="")
        return 0
    return importlib.import_module("classquery.engine.run.main").run(arguments, task)


def run_script() -> int:
    """What `run_action_detection.py` does."""
    return _without_traceback(lambda: run_task(SCRIPT, sys.argv[1:]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 1 if something could not be done, 2 for what cannot be meant."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"classquery {importlib.import_module('classquery').__version__}")
        return 0
    if name not in COMMANDS:
        hint = closest(name, [*COMMANDS, "--help", "--version"])
        print(f"error: there is no command {name[:200]!r}{hint}\n\n{_overview()}", file=sys.stderr)
        return 2
    return _without_traceback(lambda: COMMANDS[name].call(rest))


def _without_traceback(call: Callable[[], int | None]) -> int:
    """Show what a user can put right as one message."""
    try:
        return call() or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever reads the output, as `head` does, has seen enough; nothing is left to be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit:
        # The end of a help text, for which the classes below need not be imported.
        raise
    except _user_errors() as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1


def _in_words(error: Exception) -> str:
    """What a file system says, without its number and with what to do; other messages as they are."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
        return f"{error.strerror}: {str(name)[:200]!r}; check the path, the rights and the room on the disk"
    return str(error)


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors in options, recipes, annotations, videos and checkpoints; looked up when there is one."""
    strict = importlib.import_module("huggingface_hub.errors").StrictDataclassError
    reading = importlib.import_module("classquery.data.video.reader").VideoReadError
    building = importlib.import_module("classquery.kernels.build").BuildError
    return OSError, ValueError, strict, reading, building


def _run(name: str) -> Callable[[Sequence[str]], int]:
    return lambda arguments: run_task(TASKS[name], arguments)


def _main(module: str, name: str) -> Callable[[Sequence[str]], int | None]:
    """Call the command that a module has as `python -m MODULE`, too."""
    return lambda arguments: importlib.import_module(f"classquery.{module}").main(arguments, prog=f"classquery {name}")


_DETECTORS, _DATA, _MODELS = "detectors", "data and metrics", "models"
COMMANDS = {
    "detect": Command(_DETECTORS, "detect actions in videos: who does what, where and when", _run("detect")),
    "train": Command(_DETECTORS, "train a detector, or fine-tune one on your own videos", _run("train")),
    "eval": Command(_DETECTORS, "score a detector on a data set", _run("eval")),
    "demo": Command(_DETECTORS, "serve a web page to drop videos on", _main("engine.demo.__main__", "demo")),
    "data": Command(_DATA, "check, prepare or convert a data set, list formats", _main("data.__main__", "data")),
    "metrics": Command(_DATA, "score detections of any model, from files", _main("data.metrics.__main__", "metrics")),
    "recipes": Command(_DATA, "list recipes, or show one with its sources", _main("cli.recipes", "recipes")),
    "weights": Command(
        _MODELS, "list published weights and what they score, or get them", _main("engine.weights.__main__", "weights")
    ),
    "convert": Command(
        _MODELS, "make a model of published weights", _main("convert_classquery_checkpoint", "convert")
    ),
    "export": Command(
        _MODELS, "write a detector as ONNX or torch.export program", _main("engine.export.__main__", "export")
    ),
    "share": Command(_MODELS, "share a folder with a model on the Hub", _main("engine.sharing.__main__", "share")),
    "kernels": Command(_MODELS, "list the kernels, or compile them ahead", _main("kernels.__main__", "kernels")),
}


def _overview() -> str:
    lines = ["usage: classquery COMMAND [options]   (--help behind a command lists its options)"]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name:8} {command.summary}" for name, command in COMMANDS.items() if command.group == group]
    return "\n".join([*lines, "", "  --version"])
