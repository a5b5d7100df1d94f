"""How far a run is: a bar over all its optimizer steps, those before it was resumed included."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class Progress(ProgressBar):
    """Shown on a terminal, by the first process. The rate, and so the time left, is that of the steps since the resume."""

    is_enabled = True  # Lightning prints by way of it then

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None

    def disable(self) -> None:
        """Lightning asks for it in further processes, which leave the bar to the first."""

    def enable(self) -> None:
        """Lightning would ask for it after what is not done here."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)))

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            done = {"total": trainer.max_steps, "initial": trainer.global_step}
            self.bar = tqdm(desc="training", unit=" steps", dynamic_ncols=True, disable=None, **done)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.bar is None:
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:  # at other times the loss is not known
            self.bar.set_postfix(self.get_metrics(trainer, module), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
