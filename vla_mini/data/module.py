"""Demonstrations -> what Lightning's Trainer asks for: shuffled training batches, validation batches in order."""

from collections.abc import Callable
from typing import Any

from lightning import LightningDataModule
from torch import Tensor

from vla_mini.data.chunks import ActionChunkDataset, BatchLoader
from vla_mini.data.reader import Demonstrations
from vla_mini.types import Batch


class DemonstrationDataModule(LightningDataModule):
    """Batches of both splits.

    - batch_size: of one process
    - num_processes: how many share each global batch, which has `num_processes` times as many samples
    - num_workers: processes that make batches ahead, for frames that are decoded when they are needed. A batch of others is
      a gather from a memory-mapped file, which is faster than fetching it from another process
    - chunks: the other arguments of `ActionChunkDataset`: tokenize, horizon, history, targets
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        *,
        batch_size: int,
        num_processes: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        **chunks: Any,
    ) -> None:
        super().__init__()
        self.train_dataset = ActionChunkDataset(demonstrations, split="train", **chunks)
        self.validation_dataset = ActionChunkDataset(demonstrations, split="validation", **chunks)
        self._num_workers = num_workers
        self._batch_size, self._num_processes, self._seed = batch_size, num_processes, seed
        self.train_dataloader(), self.val_dataloader()  # refuse a batch size that does not fit, before any work

    def train_dataloader(self) -> BatchLoader:
        return self._loader(self.train_dataset, seed=self._seed)

    def val_dataloader(self) -> BatchLoader:
        return self._loader(self.validation_dataset, seed=None)

    def _loader(self, dataset: ActionChunkDataset, *, seed: int | None) -> BatchLoader:
        assert not self.trainer or self.trainer.world_size == self._num_processes
        rank = self.trainer.global_rank if self.trainer else 0
        options = {"seed": seed, "num_workers": self._num_workers, "rank": rank, "world_size": self._num_processes}
        options["same_every_epoch"] = bool(self.trainer and self.trainer.overfit_batches)
        return BatchLoader(dataset, batch_size=self._batch_size, **options)


class AugmentedDataModule(DemonstrationDataModule):
    """The same, where training batches are changed once they are on the device.

    - augment: of their images (`Augmentation`)
    - mirror: of whole samples, before that (`Mirror`)
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        *,
        augment: Callable[..., Tensor],
        mirror: Callable[[Batch], Batch] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(demonstrations, **arguments)
        self._augment, self._mirror = augment, mirror

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if not self.trainer.training:
            return batch
        batch = self._mirror(batch) if self._mirror else batch
        number = self.trainer.fit_loop.total_batch_idx + 1  # a checkpoint restores it
        images = self._augment(batch.observation.images, batch=number, rank=self.trainer.global_rank)
        return batch._replace(observation=batch.observation._replace(images=images))
