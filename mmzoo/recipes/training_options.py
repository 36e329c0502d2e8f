"""Define `TrainingOptions`: how a recipe is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """Define how a recipe is trained. Times are in optimizer steps unless their description says epochs."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of parts that name none")
    batch_size: int = Field(32, ge=1, le=1 << 20, description="examples a step and process")
    epochs: float = Field(1.0, gt=0, le=1e9, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, le=1 << 40, description="stop after so many steps; overrides `epochs`")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay; not on biases and norms")
    warmup: float = Field(0.03, ge=0, description="linear warm-up: a share of all steps below 1, else steps")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="learning rate after the warm-up"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="clip gradients to this norm; 0 for no clipping")
    accumulate: int = Field(1, ge=1, description="batches a step")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast type; `auto` is bf16 on a GPU that has it, else fp32"
    )
    gradient_checkpointing: bool = Field(False, description="trade compute for memory in the language model")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of initialisation, shuffling and dropout")
    workers: int | None = Field(None, ge=0, le=256, description="data loading processes; empty for 0 on a CPU, else up to 8")
    save_every: int = Field(0, ge=0, description="steps between checkpoints to resume from; 0 for once an epoch")
    log_every: int = Field(20, ge=1, description="steps between entries of the loss curve")
    keep_images_together: bool = Field(
        False,
        description="shuffle images, not examples: the examples of one image come in one batch, where it is encoded once",
    )
    cache_features: bool | None = Field(
        None,
        description="encode each distinct image once, before the first epoch, and keep its features on disk; empty for doing so "
        "where it pays: the encoder is frozen, and the run would encode an image more than once",
    )
    blank_images: bool = Field(False, description="replace each image by a blank one: trains a blind control")
