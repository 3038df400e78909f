"""Side-by-side benchmarks: the same rows through several trainers, step by step in turn. See README.md."""
