"""leaf together with vLLM: what its servers load. Nothing here needs vLLM installed; a server is another process."""
