"""Published weights by name, from a stand-in for Google Drive; the real servers were not reached."""

import gzip
import io
import json
import multiprocessing
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from drive_stand_in import DriveStandIn, StoredFile
from scipy.io import savemat
from transformers import pipeline
from utils import (
    GOLDEN_DIR,
    golden_config,
    golden_model,
    golden_state_dict,
    load_golden,
    write_recipe,
)

from classquery import ClassQueryForVideoActionDetection, load_detector
from classquery.checkpoint_files_classquery import CheckpointError
from classquery.configuration import load_recipe
from classquery.conversion_classquery import load_backbone, load_transformer
from classquery.engine import weights
from classquery.engine.run.arguments import ModelArguments
from classquery.engine.run.models import load_model
from classquery.engine.weights import downloading, zoo
from classquery.engine.weights.__main__ import main


PUBLISHED = json.loads(gzip.decompress((GOLDEN_DIR / "model" / "published.json.gz").read_bytes()))
GOLDEN = "vit_sf_8f"
# What gdown writes at a time; less than that is lost when a transfer breaks off.
CHUNK = 512 * 1024


def saved(tensors: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


WEIGHTS = saved({"a": torch.arange(500_000.0)})
OTHER_WEIGHTS = saved({"a": torch.arange(500_000.0) + 1})


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A server with the file `one`, an empty cache, and a zoo of a transformer and a backbone."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(downloading, "_RETRIES", 0)
    entries = {
        "one": {"kind": "transformer", "drive": "one", "file": "one.pth"},
        "plain": {"kind": "backbone", "url": "https://files.example.org/plain.pth", "file": "plain.pth"},
    }
    publish(tmp_path, monkeypatch, entries)
    weights.accept_licence()
    with DriveStandIn() as server:
        server.lead_there(monkeypatch)
        server.files["one"] = StoredFile(WEIGHTS)
        server.files["plain.pth"] = StoredFile(WEIGHTS)
        yield server
        server.shutdown()


def publish(tmp_path, monkeypatch, entries: dict) -> None:
    common = {"data": "made up", "network": "tiny", "bounds": [0.5, 100]}
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps({name: common | entry for name, entry in entries.items()}))
    monkeypatch.setattr(zoo, "ZOO_FILE", path)


def get(name: str = "one"):
    return weights.weights_file(f"published:{name}", ("transformer", "backbone"))


def kept() -> list[str]:
    """Names of what is in the folder of files, without locks."""
    folder = zoo.cache_folder() / "files"
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


# The list


def test_zoo_names_recipes_and_bounds_that_the_published_files_must_be_within():
    """In half precision without anything else they are smallest; with the states of Adam, three times as large."""
    reference = {
        "ava22_csn152": "AVA22_CSN152",
        "ava22_vit_b": "AVA22_ViT-B",
        "ava22_vit_b_v2": "AVA22_ViT-B_v2",
        "ucf101_24_vit_b": "UCF_ViT-B",
        "jhmdb21_vit_b": "JHMDB_ViT-B",
    }
    detectors = {one.name: one for one in weights.load_zoo().values() if one.kind == "detector"}
    assert detectors.keys() == reference.keys()
    for name, one in detectors.items():
        megabytes = PUBLISHED[reference[name]]["parameters"] * 4 / 1e6
        assert one.megabytes == pytest.approx(megabytes, rel=0.01)
        assert one.bounds[0] <= megabytes / 2
        assert one.bounds[1] >= 3 * megabytes
        assert one.recipe == name == load_recipe(one.recipe).name
        assert one.frame_map
    for one in weights.load_zoo().values():
        assert (one.drive is None) != (one.url is None)


def test_stage_one_transformers_fit_into_their_bounds():
    for name, reference in {"ava22_stage1": "AVA22_CSN50", "ucf101_24_stage1": "UCF_ViT-B"}.items():
        facts = PUBLISHED[reference]
        left_out = {*facts["tied"], *facts["unused"]}
        shapes = {n: shape for n, shape in facts["state_dict"].items() if n not in left_out}
        alone = sum(int(np.prod(shape)) for n, shape in shapes.items() if n.startswith("transformer."))
        smallest, largest = weights.load_zoo()[name].bounds

        assert smallest <= alone * 2 / 1e6
        assert facts["parameters"] * 3 * 4 / 1e6 <= largest


def test_list_says_what_was_published_and_what_is_here(drive, capsys):
    main([])
    before = capsys.readouterr().out
    get()
    main(["list"])
    after = capsys.readouterr().out

    assert before.splitlines()[1].split() == [
        *["one", "transformer", "made", "up", "tiny", "-", "-", "?", "CC", "BY-NC", "4.0", "-"]
    ]
    assert after.splitlines()[1].split()[-1] == "fetched"
    assert str(zoo.cache_folder()) in after


# Pages


@pytest.mark.parametrize("page", ["file", "notice"])
def test_file_is_fetched_once_and_noted(drive, page):
    drive.files["one"].page = page

    path = get()

    assert path.read_bytes() == WEIGHTS
    assert kept() == ["one.pth", "one.pth.json"]
    num_requests = len(drive.requests)
    assert get() == path
    assert len(drive.requests) == num_requests


@pytest.mark.parametrize(
    ("page", "meaning"),
    [
        ("quota", "too many people fetched the file lately"),
        ("login", "asks to log in"),
        ("consent", "asks for consent to cookies"),
        ("robot", "takes this network for a robot"),
        ("missing", "no such file any more"),
        ("endless notice", "cannot scan the file for viruses, and what its button leads to is no file"),
        ("elsewhere", "cannot scan the file for viruses"),
        ("unknown", "is called 'Something new'"),
    ],
)
def test_page_instead_of_a_file_is_explained_with_a_way_out(drive, page, meaning):
    drive.files["one"].page = page

    with pytest.raises(CheckpointError, match=meaning) as error:
        get()

    by_hand = zoo.cache_folder() / "files" / "one.pth"
    assert f"from https://drive.google.com/file/d/one/view and save it as {by_hand}" in str(error.value)
    assert kept() == []
    assert not drive.transfers or page == "endless notice"
    # And so it is done.
    by_hand.write_bytes(WEIGHTS)
    assert get() == by_hand


def test_plain_address_is_fetched_and_its_page_refused(drive):
    assert get("plain").read_bytes() == WEIGHTS
    get("plain").unlink()
    del drive.files["plain.pth"]
    with pytest.raises(CheckpointError, match=r"files.example.org sends a page .* no such file any more"):
        get("plain")


# Transfers


def test_broken_transfers_go_on_where_they_broke_off(drive):
    drive.files["one"].breaks = [CHUNK, 2 * CHUNK]
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"broke the transfer off .* What came so far is kept: try again"):
            get()

    assert get().read_bytes() == WEIGHTS
    assert [requested for requested in drive.transfers if requested] == [f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert kept() == ["one.pth", "one.pth.json"]


def test_broken_transfer_is_taken_up_at_once(drive, monkeypatch):
    monkeypatch.setattr(downloading, "_RETRIES", 2)
    monkeypatch.setattr("random.uniform", lambda *_: 0.0)
    drive.files["one"].breaks = [CHUNK, 2 * CHUNK]

    assert get().read_bytes() == WEIGHTS


@pytest.mark.parametrize("change", ["other file", "no ranges"])
def test_what_does_not_belong_to_the_file_any_more_is_given_up(drive, change):
    drive.files["one"].breaks = [CHUNK]
    with pytest.raises(CheckpointError):
        get()

    expected = OTHER_WEIGHTS if change == "other file" else WEIGHTS
    drive.files["one"] = StoredFile(expected, takes_ranges=change == "other file")

    assert get().read_bytes() == expected


def test_what_cannot_be_reached_is_one_message(drive, monkeypatch):
    drive.shutdown()
    drive.server_close()

    with pytest.raises(CheckpointError, match=r"drive.google.com cannot be reached \(.*by hand from https") as error:
        get()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(downloading, "is_offline_mode", lambda: True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, so that nothing is fetched"):
        get()


def test_downloader_that_is_missing_is_asked_for(drive, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(CheckpointError, match=r"needs gdown \(pip install 'classquery\[weights\]'\).* by hand from"):
        get()


def test_several_processes_fetch_once(drive):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=get) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    # The server runs in this process: one address, one file.
    assert len([path for _, path, _ in drive.requests if path.startswith("/uc")]) == 1
    assert kept() == ["one.pth", "one.pth.json"]


# Files


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<!doctype html><html>" + bytes(600_000), "it is a page of the web"),
        (bytes(600_000), "it is no complete file that torch.save wrote"),
        (WEIGHTS[:-1000], "it is no complete file that torch.save wrote"),
        (saved({"a": torch.zeros(10)}), "it has 0 MB, and 0 to 100 are possible"),
    ],
)
def test_wrong_file_is_removed_before_anything_reads_it(drive, content, problem):
    drive.files["one"].content = content

    with pytest.raises(CheckpointError, match=problem):
        get()
    assert kept() == []
    drive.files["one"].content = WEIGHTS
    assert get().read_bytes() == WEIGHTS


def test_other_file_than_the_first_time_is_refused(drive):
    get().unlink()
    drive.files["one"].content = OTHER_WEIGHTS
    with pytest.raises(CheckpointError, match=r"another file than the one.pth of \d{4}-\d\d-\d\d: its SHA-256 is"):
        get()
    assert kept() == ["one.pth.json"]

    drive.files["one"].content = WEIGHTS
    path = get()
    path.write_bytes(OTHER_WEIGHTS)
    with pytest.raises(CheckpointError, match="another file"):
        get()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_backbones_come_out_of_their_archive(drive, tmp_path, monkeypatch, pack):
    published = json.loads(Path(zoo.__file__).with_name("zoo.json").read_text())
    names = ("csn50", "csn152", "vit_b")
    publish(tmp_path, monkeypatch, {name: published[name] | {"bounds": [0.5, 100], "drive": "all"} for name in names})
    matlab = io.BytesIO()
    savemat(matlab, {"w": np.arange(200_000.0)})
    files = {"pre/irCSN_152_ft.mat": matlab.getvalue(), "pre/irCSN_50_ft.mat": b"50", "pre/vit_b_k710.pth": b"other"}
    drive.files["all"] = StoredFile(pack(files | {"../ViT_B.pth": WEIGHTS}))

    assert get("csn152").read_bytes() == matlab.getvalue()
    assert get("csn50").read_bytes() == b"50"
    assert get("vit_b").read_bytes() == WEIGHTS
    assert {path.parent for path in map(get, names)} == {zoo.cache_folder() / "files"}
    assert len({path for _, path, _ in drive.requests if path.startswith("/uc")}) == 1


def test_archive_in_which_nothing_is_surely_meant_lists_what_it_holds(drive, tmp_path, monkeypatch):
    entry = {"kind": "backbone", "drive": "all", "file": "all.archive", "member": r".*\.pth", "bounds": [0, 1]}
    publish(tmp_path, monkeypatch, {"vit": entry})
    drive.files["all"] = StoredFile(zip_of({"a.pth": b"a", "b.pth": b"b"}))

    with pytest.raises(CheckpointError, match="2 files of .*all.archive could be vit: it holds a.pth, b.pth. Unpack"):
        get("vit")


# Licence


def test_licence_is_asked_for_once(drive, monkeypatch, capsys):
    (zoo.cache_folder() / "accepted_licence.json").unlink()
    with pytest.raises(CheckpointError, match="CC BY-NC 4.0, is not accepted yet: accept it once, with --accept_lic"):
        get()
    assert "not commercially" in capsys.readouterr().err
    assert drive.requests == []

    for answer in ("no\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", terminal(answer))
        with pytest.raises(CheckpointError, match="was not accepted"):
            get()
    assert drive.requests == []
    monkeypatch.setattr(sys, "stdin", terminal("y\n"))
    get()
    monkeypatch.setattr(sys, "stdin", terminal(""))
    capsys.readouterr()
    get("plain")
    assert capsys.readouterr().err == ""


def terminal(answer: str) -> io.StringIO:
    stream = io.StringIO(answer)
    stream.isatty = lambda: True
    return stream


# Names in use


def test_names_that_are_not_published_or_of_another_kind_are_refused(drive):
    with pytest.raises(CheckpointError, match="no weights are published as 'on', did you mean 'one'?"):
        get("on")
    with pytest.raises(
        CheckpointError, match="published weights one are a transformer, and here a detector is needed"
    ):
        load_detector("published:one")


def test_published_detector_is_loaded_by_its_name_everywhere(drive, tmp_path, monkeypatch, capsys):
    facts, _ = load_golden(GOLDEN)
    state_dict = golden_state_dict(facts)
    recipe = write_recipe(tmp_path / "recipe.json", golden_config(facts))
    body = {name.removeprefix("backbone.0.body."): t for name, t in state_dict.items() if ".body." in name}
    entries = {
        "tiny": {"kind": "detector", "drive": "tiny", "file": "tiny.pth", "recipe": recipe},
        "body": {"kind": "backbone", "url": "https://files.example.org/body.pth", "file": "body.pth"},
    }
    publish(tmp_path, monkeypatch, entries)
    drive.files["tiny"] = StoredFile(saved({"model": {f"module.{name}": t for name, t in state_dict.items()}}))
    drive.files["body.pth"] = StoredFile(saved({"module": body}))
    (zoo.cache_folder() / "accepted_licence.json").unlink()
    expected = golden_model(facts).state_dict()

    main(["get", "tiny", "--accept_license"])
    model, processor = load_detector("published:tiny")
    detector = pipeline("video-action-detection", model="published:tiny")

    assert "published:tiny is in" in capsys.readouterr().out
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(detector.model.state_dict(), expected, rtol=0, atol=0)
    assert processor.size["shortest_edge"] == detector.video_processor.size["shortest_edge"] == 64
    assert model.config.weights_license == "cc-by-nc-4.0"
    assert len([path for _, path, _ in drive.requests if path.startswith("/uc")]) == 1

    new = ClassQueryForVideoActionDetection(golden_config(facts))
    assert load_transformer(new, "published:tiny").loaded
    assert load_backbone(new, "published:body").loaded
    backbone = {name: tensor for name, tensor in expected.items() if name.startswith("model.backbone.")}
    torch.testing.assert_close({name: new.state_dict()[name] for name in backbone}, backbone, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="published weights body are a backbone, and here a transformer or det"):
        load_transformer(new, "published:body")


def test_names_are_checked_before_anything_is_fetched(drive):
    with pytest.raises(CheckpointError, match="no weights are published as 'nothing'"):
        main(["get", "one", "nothing"])
    assert drive.requests == []


def test_option_of_a_run_accepts_the_licence(drive):
    marker = zoo.cache_folder() / "accepted_licence.json"
    marker.unlink()

    load_model(ModelArguments(model_name_or_path="demo", accept_license=True), load_recipe("demo"))

    assert marker.exists()
