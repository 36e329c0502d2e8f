"""Hold the experiments of docs/experiments.md."""

from experiments import easy_vqa_tasks, frozen_small, openmoji, openmoji_pairs, three_signals, two_in_one

EXPERIMENTS = tuple(
    module.EXPERIMENT for module in (frozen_small, openmoji, three_signals, easy_vqa_tasks, openmoji_pairs, two_in_one)
)
