"""The command `classquery`: what it lists, what it hands on, and how it says what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from classquery.cli import main
from classquery.cli.commands import COMMANDS
from classquery.configuration.listing import describe_recipes
from classquery.data.demo.movies import write_demo_movie
from classquery.engine.detection import window
from classquery.engine.run.help import format_help
from classquery.engine.run.parsing import make_parser, parse_arguments
from classquery.engine.run.tasks import SCRIPT, TASKS


ALL_TASKS = [*TASKS.values(), SCRIPT]


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and command.summary in shown for name, command in COMMANDS.items())


def test_unknown_command_is_refused_with_the_closest(capsys):
    assert main(["detct", "video.mp4"]) == 2
    assert "did you mean 'detect'?" in capsys.readouterr().err


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.prog)
def test_short_help_is_of_options_that_exist(task):
    options = {option for action in make_parser(task)._actions for option in action.option_strings}
    shown = {word for word in format_help(task, "common").split() if word.startswith("--")}

    assert 10 <= len(shown) < 35
    assert {word.rstrip(".,:;") for word in shown} <= options
    assert len(format_help(task, "all")) > 5 * len(format_help(task, "common"))


def test_help_imports_nothing_that_takes_seconds():
    code = (
        "import sys\n"
        "from classquery.cli import main\n"
        "for arguments in ([], ['train', '--help'], ['detect', '-h'], ['data', '--help'], ['recipes'],\n"
        "    *([name, '--help'] for name in 'metrics weights convert export share demo kernels'.split())):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy', 'av') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.splitlines()[-1] == "[]"


def test_recipes_are_listed_and_shown_with_their_sources(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and text in listed for name, text in describe_recipes().items())

    assert main(["recipes", "ava22_vit_b_v2"]) == 0
    shown = capsys.readouterr().out
    assert "model.positive_weight" in shown
    assert "released configuration" in shown
    assert "changed" not in shown

    assert main(["recipes", "ava22"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no recipe 'ava22', did you mean")


def test_commands_set_what_they_are_named_after():
    trained = parse_arguments(["--recipe", "demo", "--output_dir", "x"], TASKS["train"])
    scored = parse_arguments(["--model", "demo", "--do_eval", "false", "--do_predict"], TASKS["eval"])
    assert (trained.training.do_train, trained.training.do_eval, trained.training.do_predict) == (True, True, False)
    assert (scored.training.do_train, scored.training.do_eval, scored.training.do_predict) == (False, False, True)
    assert scored.model.model_name_or_path == "demo"


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.mp4", "b.mp4", "--tubes", "--attention", "walk"],
        ["--tubes", "a.mp4", "--attention", "walk", "b.mp4"],
        ["--tubes", "true", "--attention=walk", "a.mp4", "b.mp4"],
        ["--videos", "a.mp4", "b.mp4", "--attention", "walk", "--tubes"],
    ],
)
def test_videos_may_stand_anywhere(arguments):
    prediction = parse_arguments(arguments, TASKS["detect"]).prediction

    assert prediction.videos == ["a.mp4", "b.mp4"]
    assert (prediction.tubes, prediction.attention) == (True, "walk")


def test_values_that_belong_to_nothing_are_named(capsys):
    assert main(["detect", "a.mp4", "--tube"]) == 1
    assert "there is no option --tube, did you mean '--tubes'?" in capsys.readouterr().err
    assert main(["detect", "a.mp4", "--threshold", "0.5"]) == 1
    assert "there is no option --threshold, did you mean '--score_threshold'?" in capsys.readouterr().err
    assert main(["detect", "a.mp4", "--top_k", "0"]) == 1
    assert "--top_k must be at least 1, got 0" in capsys.readouterr().err
    assert main(["train", "a.mp4", "--output_dir", "x"]) == 1
    assert "there is no option a.mp4." in capsys.readouterr().err
    assert main(["detect", "--xyzzy", "0.5"]) == 1
    assert "there is no option --xyzzy. `classquery detect --help all`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--port", "70000"), ("--port", "0"), ("--max_upload_mb", "0"), ("--max_seconds", "nan")]
)
def test_numbers_that_the_page_cannot_have_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["demo", *option])
    assert f"{option[0]} must be" in capsys.readouterr().err


def test_names_behind_two_dashes_are_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-a.mp4").touch()
    options = parse_arguments(["b.mp4", "--show_classes", "walk", "--", "-a.mp4", "--tubes"], TASKS["detect"])
    assert options.prediction.videos == ["b.mp4", "-a.mp4", "--tubes"]
    assert (options.prediction.show_classes, options.prediction.tubes) == (["walk"], False)
    with pytest.raises(ValueError, match=r"-a\.mp4 begins like an option: give it as \./-a\.mp4"):
        parse_arguments(["-a.mp4"], TASKS["detect"])
    with pytest.raises(ValueError, match=r"there is no option x\.mp4\."):
        parse_arguments(["--output_dir", "x", "--", "x.mp4"], TASKS["train"])


def test_file_that_is_missing_is_named_with_what_to_do(capsys):
    assert main(["detect", "--model", "demo", "--class_descriptions", "nowhere.json"]) == 1
    assert capsys.readouterr().err.startswith("error: No such file or directory: 'nowhere.json'; check the path")


def test_detect_writes_and_shows_where_there_is_a_window(tmp_path, monkeypatch, caplog):
    """Of a tiny movie; the desktop is played."""
    video, opened = write_demo_movie(tmp_path, "validation", 0, seconds_per_movie=1), []
    monkeypatch.setattr(window, "open_window", lambda path: opened.append(path) or False)
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--show", "--disable_tqdm"]

    assert main(["detect", str(video), *options]) == 0

    folder = tmp_path / "out" / "predictions" / "demo_val_000"
    assert json.loads((folder / "detections.json").read_text())["keyframes"]
    assert opened == [folder / "annotated.mp4"]
    assert f"no window to show it in here: {opened[0]}" in caplog.text


def test_there_is_no_window_without_a_desktop(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    assert not window.open_window(tmp_path / "annotated.mp4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch",
    [
        ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"],
        ["torch.distributed.run", "--nproc_per_node", "2"],
    ],
    ids=lambda launch: launch[0],
)
def test_module_runs_where_launchers_start_it(launch, tmp_path):
    """In two videos, of which each of two processes takes one."""
    videos = [write_demo_movie(tmp_path, "validation", index, seconds_per_movie=1) for index in range(2)]

    result = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "classquery", "detect", *videos, "--use_cpu"],
        **{"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True},
        check=False,
    )

    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(path.parent.name for path in Path(tmp_path, "out/predictions").glob("*/detections.json")) == [
        "demo_val_000",
        "demo_val_001",
    ]
