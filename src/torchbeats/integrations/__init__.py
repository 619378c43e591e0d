"""Other packages' ways of calling a model, one module each. Nothing else in torchbeats imports them."""
