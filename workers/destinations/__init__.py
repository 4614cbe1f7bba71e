"""Where rows and records go: one adapter for each place; none of them knows the ledger."""
