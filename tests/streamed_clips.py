"""List the clips that each process of a torchrun sees, streamed or trained on.

torchrun --nproc_per_node 2 tests/streamed_clips.py '{"data_dir": "DATA", "output_dir": "OUT", "num_workers": 2}'
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tiny_training import tiny_trainer

from classquery.data import load_action_dataset, make_clips
from classquery.data.transforms import ClipTransform


SAMPLING = {"num_labels": 8, "num_frames": 4, "frame_stride": 2, "frames_per_second": 15.0}


class Recorder:
    """Collates as another collator, and keeps what is in the batches."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, clips):
        """Collate, with the first pixel of each clip, to be compared with a clip that is looked up."""
        batch = self.collator(clips)
        for label, clip in zip(batch["labels"], clips, strict=True):
            label["checksum"] = int(clip["frames"].sum())
        return batch


def main() -> None:
    """Evaluate and train on streams, and write what the processes saw."""
    torch.set_num_threads(1)
    arguments = json.loads(sys.argv[1])
    num_workers, seen = arguments["num_workers"], []
    trainer = tiny_trainer(
        arguments["data_dir"],
        arguments["output_dir"],
        num_train_epochs=2,
        dataloader_num_workers=num_workers,
        per_device_eval_batch_size=2,
        seed=3,
    )
    trainer.data_collator = Recorder(trainer.data_collator)
    stream = load_action_dataset("ava", arguments["data_dir"], "train", streaming=True, num_shards=8)
    validation = make_clips(stream, **SAMPLING)
    looked_up = trainer.predict(trainer.train_dataset).metrics["test_frame_map_50"]
    streamed = trainer.predict(validation).metrics["test_frame_map_50"]
    for batch in trainer.get_eval_dataloader(validation):
        seen += [(label["clip_id"], label["checksum"], label["boxes"].tolist()) for label in batch["labels"]]
    trainer.train_dataset = make_clips(stream, transform=ClipTransform(36, 32, 0.5), shuffle=True, seed=3, **SAMPLING)
    begin_update, trained = trainer.monitor.begin_update, []

    def record(batches):
        trained.append([label["clip_id"] for batch in batches for label in batch["labels"]])
        begin_update(batches)

    trainer.monitor.begin_update = record
    trainer.train()
    result = {
        "seen": gather_object(seen),
        "trained": gather_object([trained]),
        "num_updates": trainer.state.global_step,
        "frame_map_50": [looked_up, streamed],
    }
    if PartialState().is_main_process:
        Path(arguments["output_dir"], "seen.json").write_text(json.dumps(result))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
