"""How good a model is: its own classes on labelled sounds, and what its frozen embeddings know."""
