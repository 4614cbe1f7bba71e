"""Where rows and records go: one module for each place, and nobody else knows its client."""
