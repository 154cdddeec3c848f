"""Classes in words: towers, what a detector reads from them, other classes and what is refused."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_detection import write_video
from text_towers import MAX_LENGTH, WIDTH, make_tower, save_tower, word_tokenizer
from transformers import pipeline
from utils import tiny_batch, tiny_config

from classquery import (
    ClassQueryConfig,
    ClassQueryForVideoActionDetection,
    ClassQueryVideoProcessor,
)
from classquery.configuration_classquery import CORRECTED
from classquery.convert_classquery_checkpoint import load_transformer
from classquery.engine.checkpoint import load_detector
from classquery.engine.demo import VideoPage
from classquery.engine.training.collation import BatchLabels
from classquery.engine.training.fine_tuning import TrainLowRankUpdates, TrainNewClassesOnly, change_classes
from classquery.engine.training.trainer import note_trained_classes
from classquery.model_card_classquery import make_model_card
from classquery.text_classquery import TextEncoder, TextError, read_descriptions


WORDS = {
    "wave": "a person waves",
    "walk": ["a person walks", "a person walks fast"],
    "run": "a person runs",
}
TEXT = CORRECTED | {"class_queries": "text", "text_embedding_size": WIDTH, "num_labels": 1}


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> str:
    return save_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture
def encoder(tower) -> TextEncoder:
    return TextEncoder.load(tower)


def text_model(encoder, **overrides) -> ClassQueryForVideoActionDetection:
    """A detector of three classes in words, whose weights are not those it starts with."""
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(**TEXT | overrides)).eval()
    model.set_classes(WORDS, encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.untrained_classes = None
    return model


def detect(model, **options):
    inputs = {key: value for key, value in tiny_batch(model.config).items() if key != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs, **options)


def labels_of(model) -> list[str]:
    return list(model.config.id2label.values())


@pytest.mark.parametrize("kind", ["clip", "xclip", "siglip2", "videoprism", "clip_text", "bert", "t5", "t5_encoder"])
def test_towers_of_all_kinds_give_their_own_features(tmp_path, kind):
    folder = save_tower(tmp_path, kind)

    encoder = TextEncoder.load(folder)
    together, alone = encoder(["a person pours water from a jug", "a person waves"]), encoder(["a person waves"])

    # As the documentation of transformers calls each.
    padding = {"padding": "max_length", "max_length": MAX_LENGTH} if kind == "siglip2" else {}
    # Transformers has a tokenizer of its own for SigLIP 2, whatever is saved.
    tokenizer = encoder.tokenizer if kind == "siglip2" else word_tokenizer()
    inputs = tokenizer("a person waves", return_tensors="pt", return_token_type_ids=False, **padding)
    with torch.no_grad():
        if kind in ("bert", "t5", "t5_encoder"):
            expected = encoder.model(**inputs).last_hidden_state.mean(1)
        elif kind == "clip_text":
            expected = encoder.model(**inputs).pooler_output
        elif kind == "siglip2":
            expected = encoder.model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
        else:
            expected = encoder.model.get_text_features(**inputs).pooler_output
    # Padding changes the order of sums only; in SigLIP, where it is in sight, it is the same for all.
    torch.testing.assert_close(alone, F.normalize(expected, dim=-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-6)
    assert F.cosine_similarity(together[:1], alone).item() < 1 - 1e-6
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training


def test_a_folder_detects_without_the_tower(encoder, tmp_path):
    model = text_model(encoder)
    model.config.text_encoder = str(tmp_path / "gone")
    before = detect(model)
    model.save_pretrained(tmp_path / "model")
    ClassQueryVideoProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")

    loaded, _ = load_detector(str(tmp_path / "model"))

    # In their order, so that they can be given to `set_classes` again.
    assert list(loaded.config.class_descriptions.items()) == list(model.config.class_descriptions.items())
    assert loaded.config.class_descriptions["walk"] == WORDS["walk"]
    for name in ("embeddings", "center", "scale"):
        assert torch.equal(
            getattr(loaded.model.decoder.class_words, name), getattr(model.model.decoder.class_words, name)
        )
    assert torch.equal(detect(loaded).logits, before.logits)


def test_queries_are_projections_of_embeddings_counted_from_their_mean(encoder):
    model = text_model(encoder)
    of_class = torch.stack([encoder([words] if isinstance(words, str) else words).mean(0) for words in WORDS.values()])
    centered = of_class - of_class.mean(0)
    expected = centered / centered.norm(dim=-1).mean()

    decoder = model.model.decoder

    torch.testing.assert_close(decoder.class_words(), expected, rtol=0, atol=1e-5)
    projection = decoder.text_queries.projection
    expected = expected @ projection.weight.T + projection.bias
    torch.testing.assert_close(decoder.queries_of_classes(), expected, rtol=0, atol=1e-5)


def test_descriptions_are_attended_from_an_even_start(encoder):
    even, attending = (text_model(encoder, description_pooling=how) for how in ("mean", "attention"))
    words = attending.model.decoder.class_words
    weights = words.description_logits.weight

    with torch.no_grad():
        weights.zero_()
        torch.testing.assert_close(words(), even.model.decoder.class_words(), rtol=0, atol=1e-6)
        embeddings = (words.embeddings[1] - words.center) / words.scale
        weights.copy_(50 * (embeddings[1] - embeddings[0])[None])
        torch.testing.assert_close(words()[1], embeddings[1], rtol=0, atol=1e-4)
    assert words()[0].isfinite().all()


def test_new_classes_behind_the_known_leave_their_scores(encoder):
    model = text_model(encoder, class_residual=True)
    before, residual = detect(model), model.text_readout.residual.clone()

    model.set_classes({"wave": None, "walk": WORDS["walk"], "run": None, "pour": "a person pours water"}, encoder)

    after = detect(model)
    assert labels_of(model) == ["wave", "walk", "run", "pour"]
    assert model.config.untrained_classes == ["pour"]
    torch.testing.assert_close(after.logits[..., :3], before.logits, rtol=0, atol=1e-5)
    assert torch.equal(model.text_readout.residual, torch.cat((residual, torch.zeros_like(residual[:1]))))
    # A class that was added stays one that was not trained.
    model.set_classes(["pour", "walk"])
    assert model.config.untrained_classes == ["pour"]
    assert model.config.class_groups is None
    assert torch.equal(model.text_readout.residual[1], residual[1])


def test_sentences_are_their_own_names_and_unknown_words_no_error(encoder):
    model = text_model(encoder)

    model.set_classes(["a person jumps", "run", "a zebra gallops"], encoder)

    assert labels_of(model) == ["a person jumps", "run", "a zebra gallops"]
    assert model.config.class_descriptions["a zebra gallops"] == ["a zebra gallops"]
    assert model.config.untrained_classes == ["a person jumps", "a zebra gallops"]
    assert detect(model).logits.shape[-1] == 3


def test_order_and_company_of_new_classes_do_not_change_what_they_are_read_from(encoder):
    model = text_model(encoder)
    first, second = (
        copy.deepcopy(model).set_classes(words, encoder).model.decoder.queries_of_classes()
        for words in (["a person jumps", "a person sits down"], ["a person sits down", "run", "a person jumps"])
    )

    torch.testing.assert_close(first[0], second[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(first[1], second[0], rtol=0, atol=1e-6)


def test_the_tower_of_the_configuration_encodes_new_words(tower):
    model = text_model(tower)
    assert model.config.text_encoder == tower

    model.set_classes(["run", "a person jumps"])

    expected = TextEncoder.load(tower)(["a person jumps"])[0]
    torch.testing.assert_close(model.model.decoder.class_words.embeddings[1, 0], expected, rtol=0, atol=1e-6)


def test_words_change_what_is_detected_and_train(encoder):
    model = text_model(encoder)
    logits = detect(model).logits
    assert (detect(copy.deepcopy(model).set_classes(["a person jumps", "walk", "run"], encoder)).logits - logits)[
        ..., 0
    ].abs().max() > 1e-4
    embeddings = model.model.decoder.class_words.embeddings.clone()

    model.train()(**tiny_batch(model.config)).loss.backward()

    for vectors in (model.model.decoder.text_queries, model.text_readout):
        assert vectors.projection.weight.grad.abs().max() > 0
    assert torch.equal(model.model.decoder.class_words.embeddings, embeddings)


def test_released_readout_is_the_same_for_all_words(encoder):
    model = text_model(encoder, class_readout="released")

    assert model.text_readout is None
    assert model.class_readout_bias is None
    assert detect(model.set_classes(["a person jumps"], encoder)).logits.shape[-1] == 1


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
@pytest.mark.parametrize("heads", ["released", "interleaved"])
def test_chunks_of_classes_give_what_all_of_them_do(encoder, text, chunk, heads):
    if text:
        model = text_model(encoder, class_attention_heads=heads)
        model.set_classes([*WORDS, "a person jumps", "a person sits down"], encoder)
    else:
        torch.manual_seed(0)
        model = ClassQueryForVideoActionDetection(tiny_config(class_attention_heads=heads, class_groups=[3, 2]))
    whole = detect(model, output_attentions=True)

    model.config.class_chunk = chunk
    in_chunks = detect(model, output_attentions=True)

    torch.testing.assert_close(in_chunks.logits, whole.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(in_chunks.class_attentions, whole.class_attentions, rtol=1e-6, atol=1e-6)


def test_learned_classes_have_nothing_of_words(encoder):
    model = ClassQueryForVideoActionDetection(tiny_config(**CORRECTED))

    assert not any("text" in name or "words" in name for name in model.state_dict())
    with pytest.raises(TextError, match="learned a query for each of its classes"):
        model.set_classes(["a person waves"], encoder)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "at least one class"),
        ({"wave": ""}, "'wave' has an empty description"),
        ({"wave": ["a person waves", " "]}, "'wave' has an empty description"),
        ({"wave": []}, "'wave' has an empty description"),
        ({"": "a person waves"}, "must have a name, got ''"),
        ({"wave": 3}, "by a sentence or a list of them, 'wave' by 3"),
        ({"wave": ["a person waves", "a person waves"]}, "'a person waves' is there twice, for 'wave'"),
        ({"wave": "a person waves", "greet": "a person waves "}, "is there twice, for 'greet' and 'wave'"),
    ],
)
def test_descriptions_that_describe_nothing_are_refused(classes, message):
    with pytest.raises(TextError, match=message):
        read_descriptions(classes)


def test_what_does_not_fit_is_refused_and_changes_nothing(encoder, tmp_path):
    model = text_model(encoder)
    before, config = detect(model).logits, json.dumps(model.config.to_dict(), default=str)
    other = TextEncoder.load(save_tower(tmp_path, "clip", seed=1))
    faults = [
        ({"jump": None}, encoder, "1 classes have no words, as 'jump'"),
        (["run", "run"], encoder, "must have different names"),
        (["a person jumps"], str(tmp_path / "none"), "there is no text encoder"),
        (["a person jumps"], other, "is another than that of the model"),
        (["a person jumps"], lambda sentences: torch.ones(len(sentences), 7), r"shape \(1, 7\) for 1 sentences"),
        (["a person jumps"], lambda sentences: torch.zeros(len(sentences), WIDTH), "not finite, or zero"),
    ]
    for classes, encode, message in faults:
        with pytest.raises(TextError, match=message):
            model.set_classes(classes, encode)
        assert json.dumps(model.config.to_dict(), default=str) == config
    assert torch.equal(detect(model).logits, before)


def test_what_encodes_oddly_is_refused(encoder):
    model = text_model(encoder)
    faults = [
        (lambda sentences: None, "gives a tensor of embeddings, got NoneType"),
        (lambda sentences: [[1.0], [1.0, 2.0]], "gives a tensor of embeddings, got list"),
        (lambda sentences: torch.ones(1, WIDTH, device="meta"), "gives a tensor of embeddings, got Tensor"),
        (lambda sentences: torch.full((1, WIDTH), 3e38), "not finite, or zero"),
        (3, "a folder, a name on the Hub or a function, got 3"),
    ]
    for encode, message in faults:
        with pytest.raises(TextError, match=message):
            model.set_classes(["a person jumps"], encode)
    for classes in ([1], [["a person jumps"]], [None]):
        with pytest.raises(TextError, match="classes are given by names or sentences"):
            model.set_classes(classes, encoder)


def test_classes_that_nothing_tells_apart_are_finite_and_said(encoder, caplog):
    """The tokenizer knows no animals."""
    model = ClassQueryForVideoActionDetection(tiny_config(**TEXT)).set_classes(
        ["a lion runs", "a zebra runs"], encoder
    )

    assert "1 pairs of classes have the same embedding, as 'a lion runs' and 'a zebra runs'" in caplog.text
    logits = detect(model).logits
    assert logits.isfinite().all()
    assert torch.equal(logits[..., 0], logits[..., 1])
    caplog.clear()
    model.set_classes(["a lion runs", "a person waves", "a person runs fast"], encoder)
    assert "same embedding" not in caplog.text


def test_towers_without_a_vector_for_each_sentence_are_refused(encoder, monkeypatch):
    of_tokens = lambda **inputs: torch.ones(*inputs["input_ids"].shape, WIDTH)  # noqa: E731
    monkeypatch.setattr(encoder.model, "get_text_features", of_tokens, raising=False)
    with pytest.raises(TextError, match=r"gives \(1, 5, 16\) for 1 sentences, and not one vector for each"):
        encoder(["a person waves"])
    encoder.tokenizer.pad_token = None
    with pytest.raises(TextError, match="takes no sentences .*padding token"):
        encoder(["a person waves"])


def test_classes_that_are_offloaded_stay(encoder):
    model = text_model(encoder, class_residual=True)
    model.text_readout.residual = torch.nn.Parameter(model.text_readout.residual.to("meta"))

    with pytest.raises(TextError, match="what belongs to the classes is offloaded: load the model without"):
        model.set_classes([*WORDS, "a person jumps"], encoder)
    assert labels_of(model) == list(WORDS)


def test_a_tower_without_weights_or_tokenizer_is_refused(tmp_path):
    make_tower("clip").save_pretrained(tmp_path)
    with pytest.raises(TextError, match="has no tokenizer that knows words"):
        TextEncoder.load(str(tmp_path))
    word_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensors[name] for name in list(tensors)[1:]}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(TextError, match="lacks 1 of its weights"):
        TextEncoder.load(str(tmp_path))


def test_a_model_without_words_says_so():
    model = ClassQueryForVideoActionDetection(tiny_config(**TEXT))
    with pytest.raises(TextError, match="has none yet"):
        detect(model)
    with pytest.raises(TextError, match="it is not known what encoded"):
        model.set_classes(["a person waves"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_queries": "text"}, "`text_embedding_size` must be the width"),
        (TEXT | {"class_descriptions": {"other": ["a"]}}, "has no words for .'LABEL_0'"),
        ({"class_chunk": 0}, "`class_chunk` must be at least 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(values, message):
    with pytest.raises(Exception, match=message):
        ClassQueryConfig(**values)


def test_classes_of_other_data_are_described(encoder):
    model = text_model(encoder, class_residual=True)
    words = {"jump": "a person jumps"}

    larger = change_classes(model, [*WORDS, "jump"], "add", words, encoder)
    other = change_classes(model, ["jump", "wave"], "replace", words, encoder)

    assert labels_of(model) == list(WORDS)
    assert (larger.config.class_groups, other.config.class_groups) == ([3, 1], None)
    assert labels_of(other) == ["jump", "wave"]
    torch.testing.assert_close(detect(larger).logits[..., :3], detect(model).logits, rtol=0, atol=1e-5)
    with pytest.raises(TextError, match="1 classes have no words, as 'jump'"):
        change_classes(model, [*WORDS, "jump"], "add")
    model.config.untrained_classes = ["wave"]
    # As a file has them.
    model.config.class_descriptions = dict(sorted(model.config.class_descriptions.items()))
    renamed = change_classes(model, ["Wave", "walk", "run"], "same")
    assert renamed.config.class_descriptions["Wave"] == ["a person waves"]
    assert renamed.config.untrained_classes == ["Wave"]
    assert TrainNewClassesOnly(larger, num_old=3).parameters.keys() == {
        "model.decoder.text_queries.residual",
        "text_readout.residual",
    }
    with pytest.raises(ValueError, match="nothing for each class to be trained"):
        TrainNewClassesOnly(text_model(encoder), num_old=3)


@pytest.mark.parametrize("words", [False, True])
def test_a_second_stage_takes_all_but_the_classes_of_the_first(encoder, tmp_path, words):
    first = ClassQueryForVideoActionDetection(tiny_config(**TEXT if words else {"num_labels": 1} | CORRECTED))
    first.save_pretrained(tmp_path)
    model = text_model(encoder)
    before = model.model.decoder.queries_of_classes()

    load_transformer(model, tmp_path)

    assert torch.equal(model.model.decoder.queries_of_classes(), before)
    assert torch.equal(model.model.encoder.level_embed, first.model.encoder.level_embed)


def test_long_sentences_are_cut_with_a_warning(encoder, caplog):
    encoder(["a person waves " * 10])

    assert f"it has 32 of at most {MAX_LENGTH} tokens" in caplog.text


@pytest.mark.parametrize(("annotated", "untrained"), [(None, None), ([True, False, True], ["walk"])])
def test_classes_that_training_looks_for_are_trained(encoder, annotated, untrained):
    model = text_model(encoder)
    model.config.untrained_classes = list(WORDS)
    labels = tiny_batch(model.config)["labels"]
    if annotated:
        labels = [label | {"annotated_labels": torch.tensor(annotated)} for label in labels]

    note_trained_classes(model.config, [])
    assert model.config.untrained_classes == list(WORDS)
    note_trained_classes(model.config, [{"labels": BatchLabels(labels)}])

    assert model.config.untrained_classes == untrained


def test_names_of_classes_keep_the_card_in_its_lines():
    words = {"a|b\n# c": ["on two\nlines | here"]}
    config = tiny_config(**TEXT | {"id2label": {0: "a|b\n# c"}, "class_descriptions": words})

    card = str(make_model_card(config, "me/words", num_parameters=1))

    assert "| a/b # c | on two lines / here |" in card
    assert "\n# c" not in card


def test_adapters_and_card_take_such_models(encoder):
    model = text_model(encoder).set_classes([*WORDS, "a person jumps"], encoder)
    card = str(make_model_card(model.config, "me/words", num_parameters=1))
    assert "a person jumps" in card.partition("## Limits")[2].partition("##")[0]
    assert Path(encoder.name).name in card

    pytest.importorskip("peft")
    TrainLowRankUpdates(model, rank=2)
    assert model.text_readout.projection.weight.requires_grad


def test_the_page_takes_such_models_and_says_what_was_never_trained(encoder, tmp_path):
    model = text_model(encoder).set_classes([*WORDS, "a person jumps"], encoder)
    processor = ClassQueryVideoProcessor(size={"shortest_edge": 32}, actor_threshold=0.0)
    page = VideoPage(model, processor)
    video = write_video(tmp_path / "video.mp4", np.arange(30) / 30)

    result = page.detect(video, 0.0, 2.0)
    picture, caption = page.attention(result, [row[1] for row in result.rows].index("a person jumps"))

    assert page.notice == "Known by their words only, never trained: a person jumps."
    assert "**a person jumps**" in caption
    assert picture.size[0] > 32


def test_the_pipeline_says_what_was_never_trained(encoder):
    model = text_model(encoder).set_classes([*WORDS, "a person jumps"], encoder)
    detector = pipeline(
        "video-action-detection", model=model, video_processor=ClassQueryVideoProcessor(size={"shortest_edge": 32})
    )

    detections = detector(torch.zeros(8, 3, 32, 48, dtype=torch.uint8), threshold=0, actor_threshold=0)

    assert {found["label"] for found in detections} == set(labels_of(model))
    for found in detections:
        assert ("trained" in found) == (found["label"] == "a person jumps")
    tubes = detector(torch.zeros(8, 3, 32, 48, dtype=torch.uint8), threshold=0, actor_threshold=0, return_tubes=True)
    assert {tube["label"] for tube in tubes if tube.get("trained") is False} == {"a person jumps"}
