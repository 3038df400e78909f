"""Evaluate: answers and losses of models on rows with references -> figures, comparisons, report."""
