"""Imported by the fork server alone: the slow imports, once, so that every training child starts warm.

Nothing here may start a thread or touch a device, for a fork would not survive either. SIGTERM is left to the
supervisor: one sent to the whole process group must not take the fork server, and with it a child's last
checkpoint, away.
"""

import signal

import peft
import torch
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama

import workers.evaluation.runner
import workers.training.loop

signal.signal(signal.SIGTERM, signal.SIG_IGN)

__all__ = ["peft", "torch", "transformers", "workers"]
