"""Score predictions: metrics, intervals, evaluation and comparison."""
