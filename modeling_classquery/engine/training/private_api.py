"""What the trainers here override or call of transformers' Trainer beyond its public interface, and why.

A test compares names and parameters with the installed transformers, so that an upgrade which changes one fails there.
"""

# Method: its parameters, and what it is needed for.
PRIVATE_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "_finalize_training": (
        ("self", "trial", "num_train_samples", "start_time"),
        "The averaged weights become those of the model before callbacks are told of the end, who may change modules.",
    ),
    "_get_dataloader": (
        ("self", "dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"),
        "Streams are read by every process itself; seeds of workers come from a generator of their own; evaluation "
        "drops and fills up no batch.",
    ),
    "_get_grad_norm": (
        ("self", "model", "grad_norm"),
        "The last place before an update: a gradient that is not finite stops the run.",
    ),
    "_get_output_dir": (("self", "trial"), "Where a checkpoint is going to be."),
    "_load_best_model": (("self",), "The best model is the averaged one, in its folder of the checkpoint."),
    "_load_from_checkpoint": (
        ("self", "resume_from_checkpoint", "model"),
        "The average goes on from the one in the checkpoint.",
    ),
    "_prepare_inputs": (("self", "inputs"), "Moves the inputs of an evaluation, which are no inputs of a loss."),
    "_run_epoch": (
        (
            "self",
            "model",
            "epoch",
            "train_dataloader",
            "steps_in_epoch",
            "num_update_steps_per_epoch",
            "trial",
            "ignore_keys_for_eval",
            "start_time",
            "resume_from_checkpoint",
            "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
        "A stream of shards learns how many batches of the epoch were given before an interruption.",
    ),
    "_save_checkpoint": (
        ("self", "model", "trial"),
        "A checkpoint of an earlier run is removed first, one that cannot be written afterwards.",
    ),
    "_save_rng_state": (
        ("self", "output_dir"),
        "All processes have written their parts before the state of the run says that the checkpoint is complete.",
    ),
    "_wrap_model": (("self", "model", "training", "dataloader"), "Prepares a model for evaluation as Trainer does."),
}
# Attributes that Trainer sets, or reads after others have set them.
PRIVATE_ATTRIBUTES = {
    "_created_lr_scheduler": "Says that the schedule is not the user's, which a second call of `train` would keep.",
}
