"""The gate: may this candidate replace the champion? A pure function of paired outcomes and the policy."""
