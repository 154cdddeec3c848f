"""Other classes for a trained detector: what is kept, what starts anew, what is trained."""

import copy

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from utils import TOKEN_BACKBONES, tiny_batch, tiny_config

from classquery import ClassQueryForVideoActionDetection
from classquery.configuration_classquery import CORRECTED
from classquery.engine.training.fine_tuning import (
    TrainLowRankUpdates,
    TrainNewClassesOnly,
    add_classes,
    change_classes,
    class_parameters,
    replace_classes,
)


LABELS = ["run", "stand", "sit", "jump", "wave"]
# With everything that acts in training only: drop path, dropout, batch norms.
BACKBONES = {
    "vit": tiny_config().backbone_config.to_dict() | {"drop_path_rate": 0.5},
    "csn": {"model_type": "classquery_csn", "depths": [1, 1, 1, 1]},
    "videomae": TOKEN_BACKBONES["videomae"] | {"hidden_dropout_prob": 0.5},
    "vjepa2": TOKEN_BACKBONES["vjepa2"] | {"drop_path_rate": 0.5},
}


@pytest.fixture(params=[{}, CORRECTED], ids=["released", "corrected"])
def model(request):
    torch.manual_seed(0)
    config = tiny_config(id2label=dict(enumerate(LABELS)), **request.param)
    model = ClassQueryForVideoActionDetection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def detect(model):
    inputs = {key: value for key, value in tiny_batch(model.config).items() if key != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs)


def train(model, callback=None, steps=3):
    """Steps of an optimizer that moves parameters also by momentum and decay."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    state = TrainingArguments(output_dir="unused", use_cpu=True), TrainerState(), TrainerControl()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**tiny_batch(model.config)).loss.backward()
        optimizer.step()
        if callback:
            callback.on_step_end(*state)
    if callback:
        callback.on_train_end(*state)


def test_replaced_classes_of_a_known_name_are_kept(model):
    other = replace_classes(model, ["swim", "jump", "run"])

    assert other.config.id2label == {0: "swim", 1: "jump", 2: "run"}
    assert other.config.label2id == {"swim": 0, "jump": 1, "run": 2}
    for name, parameter in other.state_dict().items():
        if name in class_parameters(other):
            torch.testing.assert_close(parameter[1:], model.state_dict()[name][[3, 0]], rtol=0, atol=0)
            # New ones are drawn amid the known ones.
            known = model.state_dict()[name]
            assert (parameter[0] - known.mean(0)).abs().max() <= 3 * known.std(0, correction=0).max()
        else:
            torch.testing.assert_close(parameter, model.state_dict()[name], rtol=0, atol=0)
    assert detect(other).logits.shape[-1] == 3


def test_added_classes_leave_the_others_as_they_are(model):
    before = detect(model)

    larger = add_classes(add_classes(model, ["swim"]), ["dive", "fall"])

    assert list(larger.config.id2label.values()) == [*LABELS, "swim", "dive", "fall"]
    assert larger.config.class_groups == [5, 1, 2]
    after = detect(larger)
    torch.testing.assert_close(after.logits[..., :5], before.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes, rtol=0, atol=1e-6)


def test_training_of_new_classes_leaves_the_others_as_they_are(model):
    before = detect(model)
    larger = add_classes(model, ["swim", "dive"])
    untrained = copy.deepcopy(larger.state_dict())

    train(larger, TrainNewClassesOnly(larger, num_old=5))

    torch.testing.assert_close(detect(larger).logits[..., :5], before.logits, rtol=0, atol=1e-5)
    changed = {name for name, tensor in larger.state_dict().items() if not torch.equal(tensor, untrained[name])}
    assert changed == set(class_parameters(larger))


def freeze_backbone(model):
    model.model.backbone.requires_grad_(False)


def freeze_old_classes(model):
    return TrainNewClassesOnly(model, num_old=4)


def train_low_rank(model):
    pytest.importorskip("peft")
    return TrainLowRankUpdates(model, rank=2)


@pytest.mark.parametrize("freeze", [freeze_backbone, freeze_old_classes, train_low_rank])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_frozen_is_the_same_bit_for_bit_after_training(backbone, freeze):
    torch.manual_seed(0)
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=BACKBONES[backbone], class_groups=[4, 1]))
    callback = freeze(model)
    # At the end, updates are merged into the matrices that they belong to.
    trained = [p for name, p in model.named_parameters() if p.requires_grad or ".base_layer.weight" in name]
    frozen = {*model.parameters(), *model.buffers()} - set(trained)
    before = {tensor: tensor.detach().clone() for tensor in frozen}
    pixel_values = tiny_batch(model.config)["pixel_values"]
    model.train()
    expected = model.model.encode_frames(pixel_values, None)[0] if freeze is freeze_old_classes else []

    train(model, callback)

    if freeze is freeze_backbone:
        assert frozen == {*model.model.backbone.parameters(), *model.model.buffers()}
    assert all(torch.equal(tensor, before[tensor]) for tensor in frozen)
    # In training mode, too: around new classes, the network acts as it will in use.
    features = model.train().model.encode_frames(pixel_values, None)[0]
    assert all(map(torch.equal, features, expected))


def test_what_is_not_frozen_is_trained_with_its_dropout_and_statistics():
    model = ClassQueryForVideoActionDetection(tiny_config(backbone_config=BACKBONES["csn"] | {"freeze_stages": 3}))
    before = copy.deepcopy(model.state_dict())

    train(model)

    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"model.backbone.layer3.0.bn1.running_mean", "model.encoder.layers.0.feed_forward.fc1.weight"} <= moved
    assert not any(name.startswith(("model.backbone.bn1", "model.backbone.layer1.")) for name in moved)
    assert model.model.decoder.localizing_layers[0].training


def test_without_groups_new_classes_would_disturb_the_others(model):
    before = detect(model)
    larger = add_classes(model, ["swim", "dive"])
    for layer in larger.model.decoder.classifying_layers:
        layer.class_groups = None

    assert (detect(larger).logits[..., :5] - before.logits).abs().max() > 1e-4


def test_known_and_repeated_classes_raise(model):
    with pytest.raises(ValueError, match="knows 'run', 'sit' already"):
        add_classes(model, ["sit", "dive", "run"])
    with pytest.raises(ValueError, match="must have different names"):
        replace_classes(model, ["dive", "dive"])


def test_groups_of_classes_are_saved(model, tmp_path):
    larger = add_classes(model, ["swim"])
    larger.save_pretrained(tmp_path)

    loaded = ClassQueryForVideoActionDetection.from_pretrained(tmp_path)

    torch.testing.assert_close(detect(loaded).logits, detect(larger).logits, rtol=0, atol=0)


def test_low_rank_updates_are_trained_and_merged(model):
    pytest.importorskip("peft")
    before = copy.deepcopy(model.state_dict())
    callback = TrainLowRankUpdates(model, rank=2)
    block = model.model.backbone.layers[0].attn.qkv
    assert not block.base_layer.weight.requires_grad
    assert model.model.decoder.class_queries.requires_grad

    train(model, callback)

    assert model.state_dict().keys() == before.keys()
    update = (
        model.state_dict()["model.backbone.layers.0.attn.qkv.weight"]
        - before["model.backbone.layers.0.attn.qkv.weight"]
    )
    singular = torch.linalg.svdvals(update)
    assert singular[0] > 1e-4
    assert singular[2] < 1e-5 * singular[0]
    torch.testing.assert_close(
        model.state_dict()["model.backbone.layers.0.attn.qkv.bias"], before["model.backbone.layers.0.attn.qkv.bias"]
    )


def test_other_spellings_are_taken_from_the_data(model):
    spelled = ["Run", "stand", "sit", "jump", "Wave!"]

    same = change_classes(model, spelled, "same")

    assert same is model
    assert model.config.id2label[4] == "Wave!"
    assert model.config.label2id["Run"] == 0


def test_exchanged_classes_are_no_other_spelling(model):
    with pytest.raises(ValueError, match="the classes of the model are not those of the data"):
        change_classes(model, ["stand", "run", *LABELS[2:]], "same")
    with pytest.raises(ValueError, match="the classes of the model are not those of the data"):
        change_classes(model, [*LABELS[:4], "shoot"], "same")


def test_other_classes_are_refused_unless_asked_for(model):
    with pytest.raises(ValueError, match="run, stand, sit, jump, wave and a, b; give .* --classes replace or add"):
        change_classes(model, ["a", "b"], "same")
    with pytest.raises(ValueError, match="must begin with those of the model"):
        change_classes(model, ["swim", *LABELS], "add")
    assert change_classes(model, ["swim", "run"], "replace").config.num_labels == 2
    assert change_classes(model, [*LABELS, "swim"], "add").config.class_groups == [5, 1]
