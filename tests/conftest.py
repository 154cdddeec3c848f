"""What all tests share: one thread for each process of tests, and a small demo data set.

Imports of seconds are in the functions: the process of `pytest` that hands out the tests does without.
"""

import gc
import os

import pytest


# Before torch is imported, and for the processes that tests start: `pytest -n` has a process for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish():
    """Stop looking for garbage in what is imported: half a second whenever a trainer collects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory):
    """Three training movies and one validation movie of six seconds, in AVA's layout."""
    from classquery.data.demo.movies import write_demo

    path = tmp_path_factory.mktemp("demo") / "data"
    write_demo(path, num_train_movies=3, num_validation_movies=1, seconds_per_movie=6)
    return path


@pytest.fixture(scope="session")
def two_movies(tmp_path_factory):
    """A folder with demo_val_000.mp4 and demo_val_001.mp4: 30 frames of 128x96 at 15 frames per second."""
    from classquery.data.demo.movies import write_demo_movie

    folder = tmp_path_factory.mktemp("movies")
    for index in range(2):
        write_demo_movie(folder, "validation", index, seconds_per_movie=2)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks compute faster on one thread, and in one order of sums."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def gpu():
    """The first GPU; with FAIL_WITHOUT_CUDA=1 it must be there."""
    from classquery.kernels import cuda

    reason = cuda.unavailable()
    if reason and os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return "cuda"
