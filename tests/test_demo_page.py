"""The web page: what it shows, its errors, the files of a Space, and all of it in a real browser."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from test_detection import make_model, write_video

from classquery import ClassQueryVideoProcessor
from classquery.data.demo.movies import write_demo_movie
from classquery.engine.checkpoint import load_detector
from classquery.engine.demo import VideoPage, build_page, write_space
from classquery.engine.demo import page as demo
from classquery.engine.detection.prediction import PredictionArguments, PredictionStoppedError, predict_videos


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page() -> VideoPage:
    model, processor = load_detector("demo")
    return VideoPage(model.eval(), processor)


@pytest.fixture(scope="module")
def movie(tmp_path_factory) -> str:
    return str(write_demo_movie(tmp_path_factory.mktemp("movie"), "validation", 0, seconds_per_movie=2))


@pytest.fixture(scope="module")
def result(page, movie):
    return page.detect(movie, 0.5, 2.0)


def test_page_says_what_the_demo_model_knows(page):
    assert "nothing but the people, balls and kites" in page.notice
    assert VideoPage(make_model(), ClassQueryVideoProcessor()).notice is None


def test_table_has_a_row_for_each_action_of_each_person(result):
    assert len(result.rows) == sum(len(person.timeline) for person in result.people) > 3
    assert [1, "stand"] in [row[:2] for row in result.rows]
    assert (result.written / "detections.json").is_file()
    assert (result.written / "annotated.mp4").is_file()


def test_rows_of_classes_and_all_that_was_written_are_offered(result):
    some = result.classes[:2]

    assert set(result.classes) == {row[1] for row in result.rows}
    assert result.rows_of([]) == result.rows
    assert result.rows_of(some) == [row for row in result.rows if row[1] in some]
    offered = {Path(path).name for path in result.downloads}
    assert {"detections.json", "annotated.mp4", "label_studio.json", "via3.json", "ava.csv", "cvat.xml"} <= offered
    assert offered == {path.name for path in result.written.iterdir()} - {"summary.json"}


def test_attention_of_a_row_is_drawn_on_its_frame(page, result):
    for row in range(2):
        picture, caption = page.attention(result, row)

        assert picture.size == (640, 480)
        assert f"Person {result.rows[row][0]}, **{result.rows[row][1]}**" in caption
    assert np.ptp(np.asarray(picture.convert("L"))) > 100


def test_attention_in_models_of_all_frames(tmp_path):
    path = write_video(tmp_path / "video.mp4", np.arange(11) / 20)
    model = make_model(output_frames="all", frame_stride=1)
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32}, actor_threshold=0.0)
    page = VideoPage(model, processor)

    picture, _ = page.attention(page.detect(path, 0.0, 20.0), 0)

    assert isinstance(picture, Image.Image)


def test_threshold_of_the_page_does_not_stay(page, movie):
    before = page.processor.score_threshold

    assert page.detect(movie, 1.0, 1.0).rows == []
    assert page.processor.score_threshold == before


@pytest.mark.parametrize("content", [None, b"no video"])
def test_what_is_no_video_raises_a_message(content, page, tmp_path):
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ValueError, match="no video|not a video"):
        page.detect(content and str(path), 0.5, 1.0)


def test_messages_and_files_do_not_name_folders_of_the_server(page, movie, tmp_path):
    (tmp_path / "secret").mkdir()
    broken, good = tmp_path / "secret" / "broken.mp4", tmp_path / "secret" / "x .mp4"
    broken.write_bytes(b"no video")
    shutil.copy(movie, good)

    with pytest.raises(ValueError, match="cannot read broken.mp4") as raised:
        page.detect(str(broken), 0.5, 1.0)
    found = page.detect(str(good), 0.5, 1.0)
    good.unlink()
    with pytest.raises(ValueError, match="cannot read x .mp4") as raised_again:
        page.attention(found, 0)

    assert "secret" not in f"{raised.value} {raised_again.value}"
    assert json.loads((found.written / "detections.json").read_text())["video"] == "x .mp4"
    assert not [
        path
        for path in found.written.iterdir()
        if path.suffix != ".mp4" and b"secret" in path.read_bytes() and path.name != "summary.json"
    ]


def test_request_that_is_stuck_does_not_block_others(page, movie, monkeypatch):
    stuck, stopped = VideoPage(page.model, page.processor, max_seconds=0.2), threading.Event()

    def hang(*arguments, is_stopped, **options):
        while not is_stopped():
            time.sleep(0.01)
        stopped.set()

    monkeypatch.setattr(demo, "predict_videos", hang)
    with pytest.raises(ValueError, match=r"more than 0.2 seconds, the limit here"):
        stuck.detect(movie, 0.5, 1.0)
    assert stopped.wait(10)
    # Whoever closes the page does not wait for it, either.
    waiting = VideoPage(page.model, page.processor)
    with ThreadPoolExecutor() as pool:
        request = pool.submit(waiting.detect, movie, 0.5, 1.0)
        while not waiting._time_limit._running:
            time.sleep(0.01)
        waiting.close()
        with pytest.raises(ValueError, match="page was closed"):
            request.result(10)


def test_detection_ends_when_nobody_waits_for_it(movie, tmp_path):
    asked = iter([False, True])

    with pytest.raises(PredictionStoppedError):
        predict_videos(
            [movie], tmp_path, *load_detector("demo"), PredictionArguments(), is_stopped=lambda: next(asked)
        )

    assert list((tmp_path / "demo_val_000").iterdir()) == []


def test_what_a_session_leaves_is_removed_and_what_others_need_is_not(page, movie, tmp_path):
    page = VideoPage(page.model, page.processor, folder=tmp_path)
    for name in ("shared", "own"):
        (tmp_path / name).mkdir()
        page.keep_for("one", tmp_path / name)
    page.keep_for("two", tmp_path / "shared")
    page.keep_for("one", tmp_path)
    page.keep_for("one", ROOT)
    found = page.detect(movie, 0.5, 1.0)
    page.keep_for("one", found.folder.name)
    with pytest.raises(ValueError, match="no video"):
        page.detect("", 0.5, 1.0)

    page.end_session("one")
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    page.end_session("two")
    page.end_session("never seen")
    assert list(tmp_path.iterdir()) == []
    assert ROOT.is_dir()


def test_missing_gradio_is_named(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)

    with pytest.raises(ImportError, match="pip install classquery"):
        build_page(page)


# Its version is read without importing it, which would take seconds.
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_space_has_all_that_it_needs(tmp_path):
    folder = write_space(tmp_path / "space", model="someone/model")

    listed = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    for package in re.findall(r'"(.*?)"', listed[1]):
        assert (folder / package.replace(".", "/") / "__init__.py").is_file()
    assert (folder / "classquery" / "demo" / "model.safetensors").is_file()
    assert 'launch("someone/model")' in (folder / "app.py").read_text()
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in requirements)
    assert any(line.startswith("matplotlib") for line in requirements)
    assert not any(line.startswith(("classquery", "pytest", "gradio")) for line in requirements)
    assert "sdk: gradio" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_space_runs_by_itself(tmp_path):
    pytest.importorskip("gradio")
    folder = write_space(tmp_path / "space")

    code = "import classquery.engine.demo.page as demo; demo.load_detector('demo'); print(demo.__file__)"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )

    assert Path(result.stdout.strip()) == folder / "classquery" / "engine" / "demo" / "page.py"


# In a browser


@pytest.fixture(scope="module")
def url(page):
    pytest.importorskip("gradio")
    blocks = build_page(page)
    _, address, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, css=demo._CSS)
    yield address
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        instance = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield instance
        instance.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_browser_upload_detect_click_a_class_and_download(width, url, browser, movie, tmp_path):
    tab = browser.new_page(viewport={"width": width, "height": 844})
    tab.goto(url)

    tab.set_input_files("#video input[type=file]", movie)
    tab.wait_for_selector("#video video", timeout=60_000)
    tab.click("#detect")
    tab.wait_for_selector("#annotated video", timeout=240_000)
    tab.click("#table [data-row='1'][data-col='1']")
    tab.wait_for_selector("#attention img", timeout=60_000)
    assert "Person" in tab.inner_text("#caption")
    # The picture of all people scrolls in a frame.
    assert tab.evaluate("document.querySelector('#timeline').clientHeight") <= 28 * 16
    tab.click("#classes input")
    tab.click("#classes [role=option] >> text=stand")
    tab.click("#table [data-row='0'][data-col='1']")
    tab.get_by_text(re.compile("Person .* stand, at")).wait_for(timeout=60_000)
    with tab.expect_download() as download:
        tab.click("#files a[download='detections.json']")
    download.value.save_as(tmp_path / "detections.json")

    assert len(json.loads((tmp_path / "detections.json").read_text())["keyframes"]) == 4
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.close()


SERVER = """
import sys, time
from classquery.engine.demo import page as demo
if sys.argv[2] == "stuck":
    demo.predict_videos = lambda *arguments, **options: time.sleep(1000)
demo.launch(max_upload_mb=1, server_port=int(sys.argv[1]), quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("request_is", ["done", "stuck"])
def test_page_takes_no_large_files_and_leaves_nothing_when_it_is_interrupted(request_is, movie, tmp_path):
    client = pytest.importorskip("gradio_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "of_server").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "of_server")}
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port), request_is], env=environment)
    try:
        user = connect(client, port)
        if request_is == "stuck":
            user.submit(client.handle_file(movie), 0.5, 1.0, api_name="/show_result")
            time.sleep(2)
        else:
            large = tmp_path / "large.mp4"
            large.write_bytes(bytes(2_000_000))
            with pytest.raises(ValueError, match="maximum file size"):
                user.predict(client.handle_file(str(large)), 0.5, 1.0, api_name="/show_result")
            user.predict(client.handle_file(movie), 0.5, 1.0, api_name="/show_result")
            assert list((tmp_path / "of_server").rglob("annotated.mp4"))
            # The session ends, the server goes on.
            user.close()
            deadline = time.monotonic() + 60
            while list((tmp_path / "of_server").rglob("*.mp4")):
                assert time.monotonic() < deadline
                time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    finally:
        server.kill()
    assert not list((tmp_path / "of_server").glob("classquery*"))


def connect(client, port: int):
    """A client of the server, once that answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.Client(f"http://127.0.0.1:{port}", verbose=False)
        except (OSError, ValueError, httpx.HTTPError):
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.mark.slow
def test_browser_shows_errors_as_messages(url, browser, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    tab = browser.new_page()
    tab.goto(url)

    tab.click("#detect")
    tab.get_by_text("There is no video yet").wait_for(timeout=60_000)
    tab.set_input_files("#video input[type=file]", tmp_path / "broken.mp4")
    tab.wait_for_selector("#video video", timeout=60_000)
    tab.click("#detect")
    tab.get_by_text("cannot read").first.wait_for(timeout=60_000)
    tab.close()


@pytest.mark.slow
def test_browser_answers_while_a_long_video_is_detected(url, browser, page, movie):
    """The model waits until another tab has loaded the page and opened its options."""
    may_go_on = threading.Event()

    def wait(*_: object) -> None:
        may_go_on.wait(120)

    handle = page.model.register_forward_pre_hook(wait)
    busy, other = browser.new_page(), browser.new_page()
    busy.goto(url)
    busy.set_input_files("#video input[type=file]", movie)
    busy.wait_for_selector("#video video", timeout=60_000)
    busy.click("#detect")

    other.goto(url)
    other.get_by_text("Options").click()
    other.get_by_text("lowest score of an action").wait_for(timeout=60_000)
    assert busy.locator("#annotated video").count() == 0
    may_go_on.set()
    busy.wait_for_selector("#annotated video", timeout=240_000)
    handle.remove()
