"""What a strategy trains, whatever the task: a network adapted by PEFT that turns a batch into logits."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from workers.training.adapters import adapted_layers
from workers.training.batches import Batch

if TYPE_CHECKING:
    from workers.training.classifier import ClassificationHead


class AdaptedModel(nn.Module):
    """A frozen network wrapped by PEFT: `model(batch)` gives logits [n, classes] for `batch.labels` [n].

    With a `head`, n counts rows and classes are labels; without one, n counts answer tokens and classes are the
    vocabulary. `encoder` is the PEFT model either way.
    """

    encoder: Any
    head: "ClassificationHead | None"

    def forward(self, batch: Batch) -> Tensor:
        """Logits [n, classes] in float32, in the order of `batch.labels`."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "AdaptedModel":
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
        if self.head is not None:
            self.head.train(mode)
        self.training = mode
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: the adapter's and the head's."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The adapter's trainable parameters."""
        return [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The head's parameters by their names in the model (`head.weight`, `head.bias`); none without a head."""
        if self.head is None:
            return {}
        return {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
