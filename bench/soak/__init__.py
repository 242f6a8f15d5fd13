"""A soak: the embedded stack under load and random faults, then a ledger of everything that was acknowledged."""
