"""The trained model: an adapted encoder under a cosine-like classification head that can grow."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.training.adapters import adapted_layers
from workers.training.batches import Batch

HEAD_SCALE = 16.0
"""Length of the feature vectors that the head sees; recorded with each version."""


def pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Average hidden states [rows, tokens, width] over the unmasked tokens, in float32 -> [rows, width]."""
    mask = attention_mask.unsqueeze(-1).float()
    return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


class ClassificationHead(nn.Module):
    """A linear layer over L2-normalised features times `scale`, in float32 even under autocast.

    Args:
        width: length of the encoder's features.
        labels: number of labels.
        scale: norm of the features that the linear layer sees.
    """

    def __init__(self, width: int, labels: int, scale: float = HEAD_SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.zeros(labels, width))
        self.bias = nn.Parameter(torch.zeros(labels))

    def normalise(self, features: Tensor) -> Tensor:
        """What the linear layer sees of `features` [rows, width]."""
        return functional.normalize(features.float(), dim=-1) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits [rows, labels] of pooled features [rows, width]."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(self.normalise(features), self.weight, self.bias)

    def grow(self, labels: int) -> "ClassificationHead":
        """Return a head of `labels` rows that keeps this one's rows bit for bit; new rows are zero.

        A zero row takes part in the softmax without favouring any text, and the first steps set it.
        """
        grown = ClassificationHead(self.weight.shape[1], labels, self.scale)
        with torch.no_grad():
            grown.weight[: len(self.weight)] = self.weight
            grown.bias[: len(self.bias)] = self.bias
        return grown


class Classifier(nn.Module):
    """An encoder wrapped by PEFT with a classification head."""

    def __init__(self, encoder: Any, head: ClassificationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def train(self, mode: bool = True) -> "Classifier":
        """Put the adapter in training mode; the frozen base stays as it is at inference.

        Dropout inside weights that do not train only blurs what the adapter has to fit, and costs a third of a
        step on a CPU (it also rules out the fused attention kernel).
        """
        super().train(False)
        for layer in adapted_layers(self.encoder).values():
            layer.train(mode)
        for module in self.encoder.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode  # a layer in inference mode would keep all of its activations
        self.head.train(mode)
        self.training = mode
        return self

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean-pooled features [rows, width] in float32."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [rows, labels]."""
        logits: Tensor = self.head(self.features(batch.input_ids, batch.attention_mask))
        return logits

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: the adapter's and the head's."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The adapter's trainable parameters."""
        return [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]

    def head_parameters(self) -> Sequence[nn.Parameter]:
        """The head's parameters."""
        return list(self.head.parameters())
