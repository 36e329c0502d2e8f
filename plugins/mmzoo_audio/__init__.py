"""Provide audio: the encoders `mel-transformer`, `log-mel-gru` and `hf-audio`, the data set `tones` and the recipe
`audio-prefix-gpt`."""
