"""leaf inside verl: trainers with leaf's credit, leaf's rewards, and data sets with audio; docs/engines.md says how."""
