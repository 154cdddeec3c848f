"""Training and evaluation on clips that are streamed, where every process and worker reads its own shards."""

from collections.abc import Callable
from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from classquery.data.shards.stream import ShardStream
from classquery.data.streaming import ClipStream


class PassingOver:
    """Collates as another collator, and makes an empty batch of clips that are passed over, which is thrown away."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, clips: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Collate clips, or nothing."""
        return {} if clips[0] is None else self.collator(clips)


class StreamingTrainer(Trainer):
    """Trainer that takes a `ClipStream` or a `ShardStream` as well as clips that are looked up."""

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        if isinstance(dataset, ShardStream):
            settings = {"batch_size": batch_size, "is_training": is_training}
        elif isinstance(dataset, ClipStream):
            settings = {"batch_size": batch_size if is_training else None}
        else:
            settings = sampler_fn, is_training, dataloader_key
            return super()._get_dataloader(dataset, description, batch_size, *settings)
        part = dataset.for_process(self.args.process_index, self.args.world_size, **settings)
        num_workers = self.args.dataloader_num_workers
        dataloader = DataLoader(
            part,
            batch_size=batch_size,
            collate_fn=PassingOver(self.data_collator),
            num_workers=num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # As for one process: by itself, Accelerate would let every process read everything, or one for all of them.
        return prepare_data_loader(
            dataloader, self.args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def _run_epoch(
        self,
        model,
        epoch,
        train_dataloader,
        steps_in_epoch,
        num_update_steps_per_epoch,
        trial,
        ignore_keys_for_eval,
        start_time,
        resume_from_checkpoint,
        epochs_trained,
        steps_trained_in_current_epoch,
    ):
        # What a run had of the epoch before it was interrupted, Trainer passes over; shards do so without reading it.
        if isinstance(train_dataloader.dataset, ShardStream):
            is_resumed = epoch == epochs_trained and resume_from_checkpoint is not None
            num_passed = steps_trained_in_current_epoch if is_resumed and not self.args.ignore_data_skip else 0
            train_dataloader.dataset.load_state_dict({"epoch": epoch, "num_batches": num_passed})
        super()._run_epoch(
            model=model,
            epoch=epoch,
            train_dataloader=train_dataloader,
            steps_in_epoch=steps_in_epoch,
            num_update_steps_per_epoch=num_update_steps_per_epoch,
            trial=trial,
            ignore_keys_for_eval=ignore_keys_for_eval,
            start_time=start_time,
            resume_from_checkpoint=resume_from_checkpoint,
            epochs_trained=epochs_trained,
            steps_trained_in_current_epoch=steps_trained_in_current_epoch,
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Count the clips of all processes."""
        dataset = dataloader.dataset
        is_stream = isinstance(dataset, ClipStream | ShardStream)
        return len(dataset.clip_ids) if is_stream else super().num_examples(dataloader)
