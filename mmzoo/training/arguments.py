"""Make the trainer of a model: its arguments, callbacks and precision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from mmzoo.checkpoints.folder import CHECKPOINTS
from mmzoo.errors import TrainingError
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.training_options import TrainingOptions
from mmzoo.registry.manager import plugin_manager
from mmzoo.training.sampling import _Stream
from mmzoo.training.trainer import MultimodalTrainer


def make_trainer(model: MultimodalModel, examples: Any, output: Path, *, skip_bad: bool, progress: bool) -> MultimodalTrainer:
    options = model.recipe.training
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError("nothing is trained: every part is frozen; set train: full, last:N or lora:r on one")
    model.checkpoint_blocks(options.gradient_checkpointing)
    workers = options.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    settings: dict[str, Any] = dict(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup,
        lr_scheduler_type=options.schedule,
        max_grad_norm=options.max_grad_norm,
        gradient_accumulation_steps=options.accumulate,
        seed=options.seed,
        data_seed=options.seed,
        save_strategy="steps" if options.save_every else "epoch",
        save_steps=options.save_every or 500,
        save_total_limit=2,
        logging_steps=options.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_persistent_workers=workers > 0,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        **_precision(options),
    )
    arguments = TrainingArguments(**settings)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs go through `accelerate launch`, never DataParallel
    data = examples if isinstance(examples, Sequence) else _Stream(examples)
    callbacks = [
        callback for found in plugin_manager().manager.hook.mmzoo_train_callbacks(recipe=model.recipe) for callback in found
    ]
    trainer = MultimodalTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=model.collator(training=True, blank=options.blank_images),
        callbacks=callbacks,
        skip_bad=skip_bad,
        progress=progress,
    )
    return trainer


def _precision(options: TrainingOptions) -> dict[str, bool]:
    gpu = torch.cuda.is_available()
    if options.precision == "fp16" and not gpu:
        raise TrainingError("training.precision: fp16 needs a GPU; use bf16 or fp32 here")
    bf16 = options.precision == "bf16" or (options.precision == "auto" and gpu and torch.cuda.is_bf16_supported())
    return {"bf16": bf16, "fp16": options.precision == "fp16"}
