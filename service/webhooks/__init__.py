"""Signed webhooks: the outbox, what may be called, how it is signed and sent, and the calls that manage them."""
