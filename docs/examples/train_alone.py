"""Trains a small network on handwritten digits: a script as anyone has it."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
mine = slice(0, None, 4)  # every fourth digit, so that the others are for other clients
digits = TensorDataset(images[mine], labels[mine])
train_set, test_set = torch.utils.data.random_split(digits, [0.8, 0.2], torch.Generator().manual_seed(0))

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)


def test(model: nn.Module) -> dict[str, float]:
    """Return loss and accuracy on this client's test set."""
    x, y = test_set[:]
    with torch.no_grad():
        logits = model(x)
    loss, accuracy = functional.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()
    return {"loss": loss.item(), "accuracy": accuracy.item(), "num_examples": len(y)}


for _ in range(args.epochs):
    for x, y in DataLoader(train_set, batch_size=32, shuffle=True):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
print(test(model))
