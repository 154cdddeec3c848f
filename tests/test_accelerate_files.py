"""The example files for `accelerate launch --config_file`, as far as a machine without GPUs goes."""

import os
from pathlib import Path
from unittest import mock

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env


FOLDER = Path(__file__).parents[1] / "docs" / "accelerate"


def environment(name: str) -> dict[str, str]:
    """What `accelerate launch` tells the processes of a script, of which it starts eight on each machine."""
    command = ["--config_file", str(FOLDER / name), "script.py"]
    with mock.patch("torch.cuda.device_count", return_value=8):
        arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if name.startswith("deepspeed"):
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return prepare_deepspeed_cmd_env(arguments)[1]
    return prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_are_read_with_every_value(path):
    config = load_config_from_file(str(path)).to_dict()

    for name, value in yaml.safe_load(path.read_text()).items():
        assert config[name] == value, name
    assert f"--config_file docs/accelerate/{path.name}" in path.read_text()


def test_processes_are_told_how_to_divide_the_model():
    with mock.patch.dict(os.environ):
        told = environment("fsdp2.yaml")
    assert (told["ACCELERATE_USE_FSDP"], told["FSDP_VERSION"]) == ("true", "2")
    assert told["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert told["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


def test_processes_of_deepspeed_are_told_the_stage():
    with mock.patch.dict(os.environ):
        told = environment("deepspeed_zero2.yaml")
    assert (told["ACCELERATE_USE_DEEPSPEED"], told["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) == ("true", "2")


@pytest.mark.parametrize("name", ["multi_gpu.yaml", "multi_machine.yaml"])
def test_whole_models_are_not_divided(name):
    with mock.patch.dict(os.environ):
        told = environment(name)
    assert told["ACCELERATE_MIXED_PRECISION"] == "no"
    assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & told.keys() - os.environ.keys()
