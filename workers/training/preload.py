"""Imported by the fork server alone: the slow imports, once, so that every training child starts warm.

Nothing here may start a thread or touch a device, for a fork would not survive either. SIGTERM is left to the
supervisor: one sent to the whole process group must not take the fork server, and with it a child's last
checkpoint, away.
"""

# ruff: noqa: E402  # the collector must be off before the imports that it would slow down

import gc
import signal

gc.disable()  # what is imported stays: looking for garbage among it takes a fifth of the time

import peft
import torch
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama

import workers.child_logs
import workers.evaluation.runner
import workers.training.loop

gc.freeze()  # nor do the children look there, again and again, and copy every page of it
gc.enable()

signal.signal(signal.SIGTERM, signal.SIG_IGN)

__all__ = ["peft", "torch", "transformers", "workers"]
