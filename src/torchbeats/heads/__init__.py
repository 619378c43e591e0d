"""Label heads from stored embeddings: which windows have which labels, a fit in seconds, and what to label next."""
