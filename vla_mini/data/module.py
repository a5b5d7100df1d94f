"""Demonstrations -> what Lightning's Trainer asks for: shuffled training batches, validation batches in order."""

from collections.abc import Callable

from lightning import LightningDataModule
from torch import Tensor

from vla_mini.data.reader import Demonstrations
from vla_mini.data.windows import ActionWindows, Keyframe, Tokenize, WindowBatches
from vla_mini.types import Batch


class DemonstrationDataModule(LightningDataModule):
    """Batches of both splits. The arguments that are not explained here are those of `ActionWindows`.

    - batch_size: of one process
    - num_processes: how many share each global batch, which has `num_processes` times as many samples
    - augment: changes the images of training batches (`Augmentation`), once they are on the device

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
        num_processes: int = 1,
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
        self._batch_size, self._num_processes = batch_size, num_processes
        self._seed = seed
        self._augment = augment
        self.train_dataloader(), self.val_dataloader()  # refuse a batch size that does not fit, before any work

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
        rank = 0
        if self.trainer:
            rank = self.trainer.global_rank
            assert self.trainer.world_size == self._num_processes, "each would get the part of another number of processes"
        return WindowBatches(windows, batch_size=self._batch_size, seed=seed, rank=rank, world_size=self._num_processes)
