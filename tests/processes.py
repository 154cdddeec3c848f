"""Processes that are copies of the tests' own: they import nothing again, which is most of what a new one costs."""

import os

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.distributed.elastic.utils.distributed import get_free_port


def run_forked(num_processes: int, function, *arguments, **options) -> None:
    """Call a function in a process of its own, or in several with the environment that `torchrun` gives them.

    Raises torch.multiprocessing's ProcessRaisedException, with the traceback, if the function raises in one, and
    ProcessExitedException if one is killed; the others are ended then.
    """
    # Threads do not live on in a copy, which would wait for them forever.
    assert torch.get_num_threads() == 1
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port()), "WORLD_SIZE": str(num_processes)}

    def call(rank: int) -> None:
        if num_processes > 1:
            os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # Forget that the process of the tests is alone in its world.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        function(*arguments, **options)

    torch.multiprocessing.start_processes(call, nprocs=num_processes, start_method="fork")
