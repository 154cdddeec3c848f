"""Detectors as programs: what they compute without the model, and that none is left that computes something else."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from utils import tiny_config

from classquery import ClassQueryForVideoActionDetection, ClassQueryVideoProcessor, detect, load_detector
from classquery.data.demo.movies import write_demo_movie
from classquery.engine.export import OUTPUTS, ExportError, ExportOptions, export_detector, load_exported
from classquery.engine.export import __main__ as command
from classquery.engine.export import exporting as export


# As little as there can be: to convert an operation takes as long in small models as in large ones.
SMALLEST = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_feature_levels": 2,
    "backbone_config": tiny_config().backbone_config.to_dict() | {"num_hidden_layers": 1},
}
WORDS = {"class_queries": "text", "text_embedding_size": 8, "class_readout": "per_class", "class_chunk": 3}
CSN = {"backbone_config": {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]}, "num_frames": 8}
FIXED = ExportOptions(dynamic=(), height=32, width=48)


def tiny_detector(**overrides) -> tuple[ClassQueryForVideoActionDetection, ClassQueryVideoProcessor]:
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(**overrides)).eval()
    if model.config.class_queries == "text":
        vectors = {f"class {number}": row for number, row in enumerate(torch.randn(4, 8))}
        model.set_classes(vectors.keys(), lambda sentences: torch.stack([vectors[words] for words in sentences]))
    return model, ClassQueryVideoProcessor(size={"shortest_edge": 32})


@pytest.fixture(params=["onnx", "pt2"])
def ending(request):
    if request.param == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    return request.param


@pytest.fixture
def quick(monkeypatch):
    """Models that are written as their name, and read as whatever `run` of the returned dict does."""
    programs = {}
    monkeypatch.setattr(export, "_trace", lambda *_: None)
    monkeypatch.setitem(export._SAVE, "torch", lambda program, path, *_: path.write_text("a program"))
    monkeypatch.setitem(export._LOAD, "torch", lambda path: (programs["run"], {}))
    return programs


def outputs_of(model: torch.nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = model(*inputs)
    return [outputs[name] for name in OUTPUTS]


def assert_same_detections(ours, theirs) -> None:
    # float32: sums in another order, some hundred of them in a row.
    torch.testing.assert_close([ours[name] for name in OUTPUTS], theirs, atol=2e-5, rtol=1e-4)


# ONNX takes half a minute to convert even this: see the next test for its files.
@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)], indirect=True)
def test_a_program_detects_what_the_model_does_and_knows_how_to_use_it(tmp_path, ending):
    model, processor = tiny_detector(**SMALLEST)
    path = tmp_path / "new" / f"detector.{ending}"

    deviations = export_detector(model, processor, path, FIXED)
    program, its_processor = load_exported(path)

    assert list(path.parent.iterdir()) == [path]
    assert deviations.keys() == set(OUTPUTS)
    assert max(deviations.values()) < 1e-5
    assert its_processor.to_dict() == processor.to_dict()
    assert program.config.to_dict() == model.config.to_dict()
    inputs = its_processor([np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), np.uint8)])
    outputs = program(**inputs)
    assert_same_detections(outputs, outputs_of(model, *inputs.values()))
    ((detections,),) = its_processor.post_process_action_detection(outputs, target_sizes=[(64, 96)])
    assert detections["boxes"].shape == (3, 4)


class StandIn(torch.nn.Module):
    """Stands in for the model: its inputs, and outputs in an order that shows."""

    def forward(self, pixel_values, pixel_mask):
        total = pixel_values.mean((1, 2, 3, 4)) + pixel_mask.sum((1, 2))
        return tuple(total + number for number in range(len(OUTPUTS)))


def test_files_name_inputs_and_outputs_and_say_how_to_use_them(tmp_path, ending):
    format_name, path = export._FORMATS[f".{ending}"], tmp_path / f"detector.{ending}"
    clip = torch.randn(2, 4, 3, 8, 8), torch.ones(2, 8, 8, dtype=torch.long)
    program = torch.export.export(StandIn(), clip)

    export._SAVE[format_name](program, path, clip, ExportOptions(), {"config": "{}", "processor": "{1}"})
    run, metadata = export._LOAD[format_name](path)

    torch.testing.assert_close(list(run(*clip)), list(StandIn()(*clip)))
    assert (metadata["config"], metadata["processor"]) == ("{}", "{1}")
    with pytest.raises(ExportError, match=r"does not take clips of shape \(2, 4, 3, 9, 8\)"):
        run(torch.zeros(2, 4, 3, 9, 8), clip[1])
    if ending == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == ["pixel_values", "pixel_mask"]
        assert [value.name for value in session.get_outputs()] == list(OUTPUTS)


# What the model may be, and what may be left open.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ({}, {}),
        ({"output_frames": "all"}, {"dynamic": ("batch",)}),
        ({"output_frames": "all", "padding": "masked", "resampling_grid": "pixel_centers"}, {"dynamic": ("size",)}),
        (CSN, {}),
        (CSN | {"output_frames": "all"}, {"dynamic": (), "batch_size": 2}),
        ({}, {"sampling": "grid_sample", "dynamic": ()}),
        ({}, {"opset": 18, "dynamic": ()}),
        ({"class_attention_heads": "interleaved"}, {"dynamic": ()}),
        (SMALLEST | WORDS, {"dynamic": ("batch",)}),
    ],
)
def test_all_kinds_of_detectors_become_programs(tmp_path, ending, overrides, options):
    if "opset" in options and ending != "onnx":
        pytest.skip("of ONNX")
    model, processor = tiny_detector(**overrides)
    options = ExportOptions(height=32, width=48, **options)

    export_detector(model, processor, tmp_path / f"detector.{ending}", options)
    program, _ = load_exported(tmp_path / f"detector.{ending}")

    batch_size = 3 if "batch" in options.dynamic else options.batch_size
    height, width = (55, 40) if "size" in options.dynamic else (32, 48)
    pixel_values = torch.randn(batch_size, model.config.num_frames, 3, height, width)
    mask = torch.ones(batch_size, height, width, dtype=torch.long)
    if model.config.padding == "released":
        mask[0, :, 33:] = 0
        pixel_values *= mask[:, None, None]
    assert_same_detections(program(pixel_values, mask), outputs_of(model, pixel_values, mask))


# Traced with the rows of the table, or as many cells.
@pytest.mark.parametrize("size", [(4, 6), (2, 8)])
def test_sizes_that_are_left_open_are_not_closed_by_that_of_the_position_table(size):
    backbone = tiny_detector()[0].model.backbone

    class Positions(torch.nn.Module):
        def forward(self, cells):
            return backbone._positions((2, *cells.shape))

    open_sizes = ((torch.export.Dim.DYNAMIC,) * 2,)
    program = torch.export.export(Positions(), (torch.zeros(size),), dynamic_shapes=open_sizes).module()

    for size in [(5, 3), (4, 4)]:
        positions = program(torch.zeros(size))
        torch.testing.assert_close(positions, backbone._positions((2, *size)))


@pytest.mark.slow
def test_the_demo_as_a_program_detects_the_same_in_a_movie(tmp_path, ending):
    model, processor = load_detector("demo")
    path = tmp_path / f"demo.{ending}"
    command.main(["--output", str(path)])
    movie = write_demo_movie(tmp_path, "validation", 0)

    ours = list(detect(movie, *load_exported(path)))
    theirs = list(detect(movie, model, processor))

    assert len(ours) == len(theirs) > 5
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.actors) == len(other.actors)
        for our_actor, their_actor in zip(one.actors, other.actors, strict=True):
            assert our_actor.box == pytest.approx(their_actor.box, abs=0.01)
            assert dict(our_actor.actions) == pytest.approx(dict(their_actor.actions), abs=1e-4)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_gathering_equals_grid_sample(padding_mode):
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 5, 3, 1, 6, dtype=torch.float64, generator=generator)
    grid = 1.5 * torch.randn(2, 4, 7, 2, 3, dtype=torch.float64, generator=generator)
    grid[0, 0, 0, 0] = torch.tensor([1e30, -1e30, 0.0])
    if padding_mode == "zeros":
        grid[0, 0, 1] = float("nan")

    ours = export.sample_by_gathering(volume, grid, padding_mode=padding_mode, align_corners=False)

    torch.testing.assert_close(ours, F.grid_sample(volume, grid, padding_mode=padding_mode, align_corners=False))


def test_sampling_that_is_not_written_out_is_refused():
    with pytest.raises(ExportError, match="use 'grid_sample'"):
        export.sample_by_gathering(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 1, 1, 3), mode="nearest")


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_program_that_deviates_leaves_everything_as_it_was(tmp_path, quick, error):
    model, processor = tiny_detector()
    quick["run"] = lambda *inputs: [output + error for output in outputs_of(model, *inputs)]
    (tmp_path / "detector.pt2").write_text("of yesterday")

    with pytest.raises(ExportError, match="logits of the program is up to .* nothing was written"):
        export_detector(model, processor, tmp_path / "detector.pt2", FIXED)

    assert [path.read_text() for path in tmp_path.iterdir()] == ["of yesterday"]


def test_a_program_within_the_tolerance_takes_the_place_of_another(tmp_path, quick):
    model, processor = tiny_detector()
    quick["run"] = lambda *inputs: [output + 0.01 for output in outputs_of(model, *inputs)]
    (tmp_path / "detector.pt2").write_text("of yesterday")

    options = ExportOptions(dynamic=("size",), height=32, width=48, tolerance=0.02)
    deviations = export_detector(model, processor, tmp_path / "detector.pt2", options)

    assert deviations == pytest.approx(dict.fromkeys(OUTPUTS, 0.01), abs=1e-5)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a program"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"height": -1}, "height must be positive"),
        ({"dynamic": ("batch", "frames")}, "dynamic must be some of batch, size, got frames"),
        ({"opset": 17}, "opset must be at least 18, got 17"),
        ({"sampling": "grid_sample", "opset": 19}, "from opset 20 on, got 19"),
        ({"tolerance": float("nan")}, "tolerance must be positive"),
    ],
)
def test_options_out_of_range_are_refused(values, message):
    with pytest.raises(ExportError, match=message):
        ExportOptions(**values)


def test_other_files_than_programs_are_refused_before_any_work(tmp_path):
    with pytest.raises(ExportError, match="must end with .onnx or .pt2, got 'model.pt'"):
        command.main(["--output", str(tmp_path / "model.pt")])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(tmp_path / "model.pt2")


def test_frames_too_small_for_the_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frames must be at least 16x16"):
        export_detector(*tiny_detector(), tmp_path / "detector.pt2", ExportOptions(dynamic=(), height=8, width=48))

    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ExportError, match=r"onnx and onnxscript and onnxruntime: pip install 'classquery\[export\]'"):
        export_detector(*tiny_detector(), tmp_path / "detector.onnx")


def test_a_damaged_file_is_refused(tmp_path, ending):
    path = tmp_path / f"detector.{ending}"
    path.write_bytes(b"no program")

    with pytest.raises(ExportError, match="damaged or no"):
        load_exported(path)


def test_a_program_of_someone_else_is_refused(tmp_path):
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "other.pt2", extra_files={"labels": json.dumps({})})

    with pytest.raises(ExportError, match="not written by classquery"):
        load_exported(tmp_path / "other.pt2")


def test_what_a_program_cannot_do_is_refused():
    program = export.ExportedDetector(lambda *_: [], tiny_config(padding="masked"))
    pixel_values, mask = torch.zeros(1, 4, 3, 32, 48), torch.ones(1, 32, 48)
    mask[:, 30:] = 0

    with pytest.raises(ValueError, match="gives no attention"):
        program(pixel_values, output_attentions=True)
    with pytest.raises(ValueError, match="clips without padding"):
        program(pixel_values, mask)
