"""The paper's two models for text (Li et al. 2020, app. C.1): LSTM layers, initialised as in the authors' program."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprox.data.checks import check_between
from fedprox.data.sources.glove import read_glove
from fedprox.errors import UserError

MAX_SIZE = 16_384  # a layer of so many units takes 4 GB


def lstm_shakespeare(
    input_shape: tuple[int, ...],
    num_classes: int,
    hidden_size: int = 100,
    embedding_size: int = 8,
    num_layers: int = 2,
) -> nn.Module:
    """Return the model of the next character: a trained embedding, LSTM layers and one dense layer.

    Args:
        input_shape: (length,); 80 in the paper.
        num_classes: Number of characters, in inputs and labels; 80.
        hidden_size: Width of each LSTM layer; 100 in the paper, 256 in the authors' program.
        embedding_size: Width of a character's vector.
        num_layers: Number of LSTM layers.

    Raises:
        UserError: If the inputs are not sequences, or a size is out of its range.
    """
    sizes = {"hidden_size": hidden_size, "embedding_size": embedding_size, "num_layers": num_layers}
    _check("lstm_shakespeare", input_shape, sizes)
    embedding = nn.Embedding(num_classes, embedding_size)
    nn.init.xavier_uniform_(embedding.weight)
    lstm = _lstm(embedding_size, hidden_size, num_layers)
    return SequenceClassifier(embedding, lstm, _dense(hidden_size, num_classes))


def lstm_sent140(
    input_shape: tuple[int, ...],
    num_classes: int,
    glove: str,
    hidden_size: int = 256,
    dense_size: int = 30,
    num_layers: int = 2,
    max_words: int | None = None,
) -> nn.Module:
    """Return the model of a tweet's sentiment: frozen GloVe vectors, LSTM layers and two dense layers.

    The logits are (0, z), z the model's one output, so that their cross-entropy is the authors' sigmoid cross-entropy
    of z, and class 1 is predicted if z > 0. As in their program there is no activation between the dense layers; the
    paper mentions only one of them.

    Args:
        input_shape: (length,); 25 in the paper.
        num_classes: 2.
        glove: The file that the tokens are rows of.
        hidden_size: Width of each LSTM layer; 256 in the paper, 100 in the authors' program.
        dense_size: Width of the first dense layer.
        num_layers: Number of LSTM layers.
        max_words: As for the data set.

    Raises:
        UserError: If the inputs are not sequences, there are not two classes, a size is out of its range, or the file
            is damaged.
    """
    sizes = {"hidden_size": hidden_size, "dense_size": dense_size, "num_layers": num_layers}
    _check("lstm_sent140", input_shape, sizes)
    if num_classes != 2:
        raise UserError(f"model=lstm_sent140 has two classes, got {num_classes}; use it with dataset=sent140")
    vectors = torch.from_numpy(read_glove(glove, max_words).vectors)
    lstm = _lstm(vectors.shape[1], hidden_size, num_layers)
    head = nn.Sequential(_dense(hidden_size, dense_size), _dense(dense_size, 1), nn.ConstantPad1d((1, 0), 0.0))
    return SequenceClassifier(FrozenEmbedding(vectors), lstm, head)


class SequenceClassifier(nn.Module):
    """Logits, shape (batch, num_classes), from the LSTM's output after the last token."""

    def __init__(self, embedding: nn.Module, lstm: nn.LSTM, head: nn.Module) -> None:
        """Join the three parts.

        Args:
            embedding: From tokens, int64 of shape (batch, length), to vectors.
            lstm: With batch_first.
            head: From the last output, shape (batch, hidden_size), to logits.
        """
        super().__init__()
        self.embedding = embedding
        self.lstm = lstm
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of tokens of shape (batch, length)."""
        if tokens.dtype != torch.int64:
            raise UserError(f"the LSTM models take tokens, int64, got {tokens.dtype}; use model=logistic")
        outputs, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(outputs[:, -1])
        return logits


class FrozenEmbedding(nn.Module):
    """Vectors that are not trained: not parameters and not in the state dict, so clients do not send them."""

    def __init__(self, vectors: Tensor) -> None:
        """Hold the vectors, shape (num_tokens, width)."""
        super().__init__()
        self.vectors: Tensor
        self.register_buffer("vectors", vectors, persistent=False)

    def __deepcopy__(self, memo: object) -> "FrozenEmbedding":
        """Return a copy that shares the vectors, which may take half a gigabyte and are never written."""
        return FrozenEmbedding(self.vectors)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens, shape (*tokens.shape, width)."""
        return functional.embedding(tokens, self.vectors)


def _lstm(input_size: int, hidden_size: int, num_layers: int) -> nn.LSTM:
    """Return LSTM layers initialised as TensorFlow's BasicLSTMCell.

    Input and recurrent weights of a layer are one matrix there, Glorot-uniform; biases are 0, and 1 is added to the
    forget gate. PyTorch has two biases, both trained, instead of one: the same function, but a step moves their sum
    twice as far.
    """
    lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
    forget = slice(hidden_size, 2 * hidden_size)  # PyTorch's order of gates: input, forget, cell, output
    with torch.no_grad():
        for layer in range(num_layers):
            fan_in = (hidden_size if layer else input_size) + hidden_size
            bound = math.sqrt(6 / (fan_in + 4 * hidden_size))
            for name in ("weight_ih", "weight_hh"):
                getattr(lstm, f"{name}_l{layer}").uniform_(-bound, bound)
            for name in ("bias_ih", "bias_hh"):
                getattr(lstm, f"{name}_l{layer}").zero_()
            getattr(lstm, f"bias_ih_l{layer}")[forget] = 1
    return lstm


def _dense(input_size: int, output_size: int) -> nn.Linear:
    """Return a dense layer initialised as TensorFlow's: Glorot-uniform weights, bias 0."""
    dense = nn.Linear(input_size, output_size)
    nn.init.xavier_uniform_(dense.weight)
    nn.init.zeros_(dense.bias)
    return dense


def _check(model: str, input_shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Raise UserError unless inputs are sequences and all sizes are between 1 and MAX_SIZE."""
    if len(input_shape) != 1:
        raise UserError(
            f"model={model} needs sequences of tokens, got inputs of shape {tuple(input_shape)}; use model=logistic"
        )
    for name, size in sizes.items():
        check_between(f"model.{name}", size, 1, MAX_SIZE, "the paper has 2 layers of 100 or 256 units")
