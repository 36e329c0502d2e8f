"""Provide audio for mmzoo: the encoders `mel-transformer` and `hf-audio`, the data set `tones` and the recipe
`audio-prefix-gpt`."""
