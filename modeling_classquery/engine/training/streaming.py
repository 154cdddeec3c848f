"""Training and evaluation on clips that are streamed, where every process and worker reads its own shards."""

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from classquery.data.streaming import ClipStream


class StreamingTrainer(Trainer):
    """Trainer that takes a `ClipStream` as well as clips that are looked up."""

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        if not isinstance(dataset, ClipStream):
            settings = sampler_fn, is_training, dataloader_key
            return super()._get_dataloader(dataset, description, batch_size, *settings)
        part = dataset.for_process(
            self.args.process_index, self.args.world_size, batch_size=batch_size if is_training else None
        )
        num_workers = self.args.dataloader_num_workers
        dataloader = DataLoader(
            part,
            batch_size=batch_size,
            collate_fn=self.data_collator,
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

    def num_examples(self, dataloader: DataLoader) -> int:
        """Count the clips of all processes."""
        dataset = dataloader.dataset
        return len(dataset.clip_ids) if isinstance(dataset, ClipStream) else super().num_examples(dataloader)
