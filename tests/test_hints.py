"""What is suggested in place of a name that does not exist."""

import pytest

from classquery.data.hints import closest


OPTIONS = (
    "--fold",
    "--freeze",
    "--tubes",
    "--show",
    "--optim",
    "--fit_thresholds",
    "--score_threshold",
    "--lr_scheduler_type",
    "--learning_rate",
    "--on_error",
    "--output_dir",
    "--push_to_hub",
    "--per_device_eval_batch_size",
    "--help",
    "--use_cpu",
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--treshold", "--score_threshold"),
        ("--hlep", "--help"),
        ("--tube", "--tubes"),
        ("--out", "--output_dir"),
        ("--outputdir", "--output_dir"),
        ("--learnign-rate", "--learning_rate"),
        ("--batch_size", "--per_device_eval_batch_size"),
        ("--optimiser", "--optim"),
        ("--frezee", "--freeze"),
    ],
)
def test_near_name_is_suggested(typed, meant):
    assert closest(typed, OPTIONS) == f", did you mean {meant!r}?"


@pytest.mark.parametrize("typed", ["--foo", "--xyzzy", "--qqqq", "--json", "--gpus", "-o", "--", "", "--annotations"])
def test_name_that_is_like_none_gets_no_hint(typed):
    assert closest(typed, OPTIONS) == ""
    assert closest(typed, ()) == ""


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("Walk", ["sit", "walk"], "walk"),
        ("wlak", ["sit", "walk"], "walk"),
        ("sitting", ["sit", "walk"], "sit"),
        ("hand-wave", ["wave", "hand wave"], "hand wave"),
        ("日本", ["走る", "日本語"], "日本語"),
        ("lr", ["lora", "learning_rate"], "learning_rate"),
        ("ava22_vit_l", ["demo", "ava22_vit_b"], "ava22_vit_b"),
    ],
)
def test_case_endings_and_other_scripts(typed, known, meant):
    assert closest(typed, known) == f", did you mean {meant!r}?"


def test_hint_is_short_whatever_was_typed():
    assert len(closest("a" * 10_000, ["a" * 9_000])) < 230
