"""The trained model of causal-lm: an adapted decoder that answers at answer positions only."""

from typing import Any

from torch import Tensor, nn

from workers.training.adapters import adapted_layers
from workers.training.batches import Batch
from workers.training.errors import TrainingFailed
from workers.training.model import AdaptedModel
from workers.training.packing import TokenBatch


class LanguageModel(AdaptedModel):
    """A decoder with its own output layer, wrapped by PEFT or bare.

    The output layer is by far the widest: hidden states are gathered at the positions that predict an answer
    token before it sees them. Whatever the architecture does to its logits afterwards stays in place.

    Raises:
        TrainingFailed: `bad_target_modules` when the adapter sits on the output layer.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.encoder = decoder
        self.head = None
        self._predicting: Tensor | None = None
        output = decoder.get_output_embeddings()
        if any(output is layer for layer in adapted_layers(decoder).values()):
            raise TrainingFailed(
                "bad_target_modules",
                "target_modules covers the output layer, whose weights many models share with the embedding; leave it out",
            )
        output.register_forward_pre_hook(self._gather)

    def _gather(self, _output: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        predicting, self._predicting = self._predicting, None
        return None if predicting is None else (inputs[0].flatten(0, 1)[predicting][None],)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [answers, vocabulary] in float32, each from the token before the answer token."""
        if not isinstance(batch, TokenBatch):
            raise TypeError(f"a language model takes a TokenBatch, not {type(batch).__name__}")
        self._predicting = batch.predicting
        output = self.encoder(
            input_ids=batch.input_ids,
            attention_mask=batch.attention(),
            position_ids=batch.position_ids if batch.segments is not None else None,
            use_cache=False,
        )
        logits: Tensor = output.logits[0].float()
        return logits
