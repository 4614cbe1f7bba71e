"""The fleet: everything that a message passes through, from accepted prompt to ledger row."""
