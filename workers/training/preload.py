"""Imported by the fork server alone: the slow imports, once, so that every training child starts warm.

Nothing here may start a thread or touch a device, for a fork would not survive either. SIGTERM is left to the
supervisor: one sent to the whole process group must not take the fork server, and with it a child's last
checkpoint, away.
"""

import gc
import signal

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)  # drops what came while the supervisor had it blocked, too
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

gc.disable()  # what is imported stays: looking for garbage among it takes a fifth of the time

try:
    import peft
    import torch
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama

    import workers.child_logs
    import workers.evaluation.runner
    import workers.training.loop
finally:  # the fork server goes on without what could not be imported
    gc.freeze()  # nor do the children look there, again and again, and copy every page of it
    gc.enable()

__all__ = ["peft", "torch", "transformers", "workers"]
