"""leaf inside verl, tested in verl's own environment; `make test-verl` makes it and runs these tests in it."""
