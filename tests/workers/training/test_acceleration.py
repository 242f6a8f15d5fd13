"""Options that change the cost of training and not its result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workers.training.contract import TrainRequest
from workers.training.loop import train

RequestFor = Callable[..., TrainRequest]


def trained(folder: str) -> dict[str, torch.Tensor]:
    names = ("adapter_model.safetensors", "head.safetensors")
    return {key: tensor for name in names for key, tensor in load_file(Path(folder, name)).items()}


def test_gradient_checkpointing_computes_layers_again_and_learns_the_same(
    request_for: RequestFor, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    plain, calls = BertSelfAttention.forward, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(BertSelfAttention, "forward", counted)
    outputs, forwards = [], []
    for name, saving in (("plain", False), ("saving", True)):
        request = request_for("sequential", ["sport", "space"], output=name, gradient_checkpointing=saving)
        assert train(request, **quietly).warnings == ()
        outputs.append(trained(request.output))
        forwards.append(len(calls))
        calls.clear()
    assert forwards[1] == 2 * forwards[0], "every layer goes forward once more in backward"
    for key, tensor in outputs[0].items():
        torch.testing.assert_close(outputs[1][key], tensor)


def test_a_compiler_that_fails_is_a_warning_and_the_run_goes_on_plainly(
    request_for: RequestFor, quietly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(call: Any, **_options: Any) -> Any:
        def fail(*_args: Any, **_kwargs: Any) -> Any:
            raise RuntimeError("no C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    request = request_for("sequential", ["sport", "space"], compile=True)
    assert train(request, **quietly).warnings == (
        "training.compile was left out: RuntimeError: no C++ compiler",
    )
    plain = request_for("sequential", ["sport", "space"], output="plain")
    train(plain, **quietly)
    assert (
        Path(request.output, "head.safetensors").read_bytes()
        == Path(plain.output, "head.safetensors").read_bytes()
    )


@pytest.mark.slow
def test_a_compiled_encoder_learns_the_same(request_for: RequestFor, quietly: Any) -> None:
    outputs = []
    for name, compiled in (("plain", False), ("compiled", True)):
        request = request_for("sequential", ["sport", "space"], output=name, compile=compiled)
        assert train(request, **quietly).warnings == ()
        outputs.append(trained(request.output))
    for key, tensor in outputs[0].items():
        torch.testing.assert_close(outputs[1][key], tensor, atol=1e-3, rtol=0)
