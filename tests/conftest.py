"""Settings of the whole suite. The import hook must stand before anything imports leaf."""

import jaxtyping

# Shapes in leaf.credit are checked in tests only; users pay nothing for the annotations.
jaxtyping.install_import_hook("leaf.credit", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
