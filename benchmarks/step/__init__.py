"""One training step done four ways, timed; see __main__.py."""
