"""Provide a modality for mmzoo: series of measurements, with an encoder and a data set."""
