"""Demonstrations -> what Lightning's Trainer asks for: shuffled training batches, validation batches in order."""

from collections.abc import Callable

from lightning import LightningDataModule
from torch import Tensor

from vla_mini.data.reader import Demonstrations
from vla_mini.data.windows import ActionWindows, Keyframe, Tokenize, WindowBatches
from vla_mini.types import Batch


class DemonstrationDataModule(LightningDataModule):
    """Batches of both splits. `batch_size` is that of one process; the other arguments are those of `ActionWindows`, and
    `augment`, which changes the images of training batches (`Augmentation`), once they are on the device.

    A batch is one gather from the page cache, which takes less time than fetching it from a worker process would: so
    there are none.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        *,
        tokenize: Tokenize,
        horizon: int,
        batch_size: int,
        seed: int = 0,
        history: int = 1,
        keyframe: Keyframe | None = None,
        augment: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.train_windows, self.validation_windows = (
            ActionWindows(demonstrations, split=split, horizon=horizon, tokenize=tokenize, history=history, keyframe=keyframe)
            for split in ("train", "validation")
        )
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self.train_dataloader()  # refuses a batch size that does not fit, before any work

    def train_dataloader(self) -> WindowBatches:
        return self._batches(self.train_windows, seed=self._seed)

    def val_dataloader(self) -> WindowBatches:
        return self._batches(self.validation_windows, seed=None)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self._augment is None or not self.trainer.training:
            return batch
        number = self.trainer.fit_loop.total_batch_idx + 1  # which checkpoints know
        images = self._augment(batch.observation.images, batch=number, rank=self.trainer.global_rank)
        return batch._replace(observation=batch.observation._replace(images=images))

    def _batches(self, windows: ActionWindows, *, seed: int | None) -> WindowBatches:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return WindowBatches(windows, batch_size=self._batch_size, seed=seed, rank=rank, world_size=world_size)
