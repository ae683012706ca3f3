"""What verl imports in every process: it registers leaf's trainers and lets verl take speech models.

An installed leaf is found by the entry point `verl.plugins`. verl says nothing where that fails; with
VERL_USE_EXTERNAL_MODULES=leaf.engines.verl.plugin it stops, and shows why.
"""

import leaf.engines.verl.trainer  # noqa: F401
from leaf.engines.verl.audio import open_doors

open_doors()
