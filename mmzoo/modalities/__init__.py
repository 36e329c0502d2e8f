"""Open, identify and batch the inputs of an encoder, by modality."""
