"""Trains a small network on handwritten digits with Lightning: a script as anyone has it."""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedprox import federated

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
mine = slice(federated.init().client, None, 4)  # every fourth digit, so that the others are for other clients
digits = TensorDataset(images[mine], labels[mine])
train_set, test_set = torch.utils.data.random_split(digits, [0.8, 0.2], torch.Generator().manual_seed(0))


class Network(lightning.LightningModule):
    """A network of two layers."""

    def __init__(self) -> None:
        """Draw initial weights."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss on a batch."""
        loss = functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log loss and accuracy on a batch."""
        logits = self.layers(batch[0])
        self.log("val_loss", functional.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=args.lr, momentum=0.9)


model = Network()
train_loader, test_loader = DataLoader(train_set, batch_size=32, shuffle=True), DataLoader(test_set, batch_size=90)
trainer = lightning.Trainer(max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
federated.patch(trainer)
while federated.is_running():
    trainer.validate(model, test_loader)
    trainer.fit(model, train_loader)
