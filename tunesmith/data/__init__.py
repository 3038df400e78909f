"""Data: files -> rows -> records -> tokens with a label mask -> packs and batches."""
