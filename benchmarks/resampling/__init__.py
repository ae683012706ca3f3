"""Credit on the real model, measured by re-sampling from shared prefixes; see __main__.py."""
