"""Speech LLMs on transformers and peft: load one, embed prompts, sample completions, score them.

Letters of shapes, as everywhere: P prompts, K completions of a prompt, T tokens, N nodes of a prefix tree, S length of
a packed row or of the cache, D width of embeddings. In this room also: L positions of one prompt, M inner nodes of a
tree, Q hidden states that logits are read from, V vocabulary, F prefixes in decoding, C distinct completions.
"""
