"""Options that trade memory, start-up time and speed without changing what is learnt."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from workers.training.contract import TrainingSettings
from workers.training.model import AdaptedModel


@contextmanager
def accelerated(
    model: AdaptedModel, settings: TrainingSettings, try_out: Callable[[], None]
) -> Iterator[tuple[str, ...]]:
    """Put the options of `settings` to work while the context lasts; gives a warning for each that cannot be.

    Args:
        try_out: takes one forward and backward pass, so that a compiler that fails does so here and not in a step.
    """
    warnings: list[str] = []
    if settings.gradient_checkpointing:
        warnings += checkpoint_activations(model)
    if settings.compile:
        warnings += compile_encoder(model, try_out)
    try:
        yield tuple(warnings)
    finally:
        # Hooks and other batch shapes follow (Fisher information, merging): they get the plain encoder.
        model.encoder._compiled_call_impl = None
        if getattr(model.encoder.get_base_model(), "is_gradient_checkpointing", False):
            model.encoder.get_base_model().gradient_checkpointing_disable()


def checkpoint_activations(model: AdaptedModel) -> list[str]:
    """Have the encoder keep its layers' inputs only."""
    try:
        model.encoder.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        return [f"training.gradient_checkpointing was left out: {error}"]
    model.train(model.training)  # tells the layers; see `AdaptedModel.train`
    return []


def compile_encoder(model: AdaptedModel, try_out: Callable[[], None]) -> list[str]:
    """Have torch.compile translate the encoder, for batches of any length; leaves it plain when that fails."""
    try:
        model.encoder.compile(dynamic=True)
        with torch.random.fork_rng():
            try_out()
    except Exception as error:  # whatever a compiler and its tool chain come up with
        model.encoder._compiled_call_impl = None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return [f"training.compile was left out: {type(error).__name__}: {reason}"[:500]]
    finally:
        model.zero_grad(set_to_none=True)
    return []
