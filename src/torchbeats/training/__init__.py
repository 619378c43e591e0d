"""The training code that was never released: iterative pre-training, from labels to model to tokenizer and on."""
