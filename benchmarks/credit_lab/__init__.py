"""The credit laboratory: worlds small enough to know the true gradient, and credit rules held against it."""
