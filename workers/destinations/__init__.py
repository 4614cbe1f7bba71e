"""Where rows go: one adapter for each destination; none of them knows the ledger."""
