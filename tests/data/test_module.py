"""The batches under Lightning's Trainer: each epoch its own order, and the same after resuming anywhere."""

import lightning
import pytest
import torch

from vla_mini.data.augmentation import Augmentation
from vla_mini.data.module import AugmentedDataModule, DemonstrationDataModule
from vla_mini.data.reader import read_dataset


def tokenize(texts):
    return torch.ones(len(texts), 1, dtype=torch.int64), torch.ones(len(texts), 1, dtype=torch.bool)


class RecordingModule(lightning.LightningModule):
    """Learns nothing and records the states and images that it gets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.states, self.images, self.validated = [], [], []

    def training_step(self, batch, _):
        self.states.append(batch.observation.state.clone())
        self.images.append(batch.observation.images.clone())
        return self.weight * 1.0

    def validation_step(self, batch, _):
        self.validated.append(batch.observation)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def data(dataset):
    demonstrations = read_dataset(dataset)
    return lambda: DemonstrationDataModule(demonstrations, tokenize=tokenize, horizon=3, batch_size=6, seed=1)


class SaveEachStep(lightning.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(data, *, epochs, folder=None, ckpt_path=None):
    module = RecordingModule()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[SaveEachStep(folder)] if folder else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return module


def test_resuming_after_any_step_yields_the_batches_that_would_have_followed(data, tmp_path):
    complete = fit(data, epochs=3, folder=tmp_path)
    assert len(complete.states) == 9
    assert not torch.equal(torch.cat(complete.states[:3]), torch.cat(complete.states[3:6])), "each epoch has its own order"
    for step in range(1, 9):
        resumed = fit(data, epochs=3, ckpt_path=tmp_path / f"{step}.ckpt")
        assert torch.equal(torch.cat(resumed.states), torch.cat(complete.states[step:])), f"after step {step}"


def test_a_batch_for_each_process_has_to_fit(dataset):
    demonstrations = read_dataset(dataset)
    arguments = {"tokenize": tokenize, "horizon": 3, "batch_size": 12}
    DemonstrationDataModule(demonstrations, **arguments)
    with pytest.raises(ValueError, match="batch_size=12 for each of 2 processes: the split has"):
        DemonstrationDataModule(demonstrations, num_processes=2, **arguments)


def test_validation_goes_through_its_split_in_order(data, truth):
    module = fit(data, epochs=1)
    assert torch.equal(module.validated[-1].state, torch.from_numpy(truth.states[4]))


@pytest.fixture
def augmented(dataset):
    demonstrations = read_dataset(dataset)
    jitter = {"colour": {"_target_": "torchvision.transforms.v2.ColorJitter", "brightness": 0.5}}
    augment = Augmentation(jitter, draws=3, seed=1, image_size=demonstrations.features.image_size)
    return lambda: AugmentedDataModule(demonstrations, tokenize=tokenize, horizon=3, batch_size=6, seed=1, augment=augment)


def test_every_batch_is_augmented_by_its_number(dataset):
    numbers = []
    fit(
        lambda: AugmentedDataModule(
            read_dataset(dataset),
            tokenize=tokenize,
            horizon=3,
            batch_size=6,
            augment=lambda images, batch, rank: numbers.append((batch, rank)) or images,
        ),
        epochs=2,
    )
    assert numbers == [(batch, 0) for batch in range(6)]


def test_only_training_batches_are_augmented(data, augmented):
    plain, changed = fit(data, epochs=1), fit(augmented, epochs=1)
    assert torch.equal(torch.cat(plain.states), torch.cat(changed.states))
    assert all(not torch.equal(*images) for images in zip(plain.images, changed.images, strict=True))
    assert torch.equal(plain.validated[-1].images, changed.validated[-1].images)


def test_resuming_after_any_step_yields_the_augmented_images_that_would_have_followed(augmented, tmp_path):
    complete = fit(augmented, epochs=3, folder=tmp_path)
    for step in range(1, 9):
        torch.manual_seed(step)
        resumed = fit(augmented, epochs=3, ckpt_path=tmp_path / f"{step}.ckpt")
        assert torch.equal(torch.cat(resumed.images), torch.cat(complete.images[step:])), f"after step {step}"
