"""What the claims of leaf rest on. Each benchmark runs from the root of the repository: `python -m benchmarks.NAME`."""
