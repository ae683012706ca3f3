"""LEAF's credit inside the trainers of other projects; docs/engines.md says when to use which."""
