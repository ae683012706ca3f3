"""Train credit rules from one checkpoint over several seeds and compare held-out scores; see __main__.py."""
