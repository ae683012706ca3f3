"""Score completions: reward functions, their weighted sum, and language-model judges."""
