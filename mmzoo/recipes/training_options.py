"""Define `TrainingOptions`: how a recipe is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class TrainingOptions(BaseModel):
    """Define how a recipe is trained. Times are in optimizer steps unless their description says epochs."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of parts without their own")
    batch_size: int = Field(32, ge=1, le=1 << 20, description="examples per step and process")
    epochs: float = Field(1.0, gt=0, le=1e9, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, le=1 << 40, description="stop after this many steps; overrides `epochs`")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay; not on biases and norms")
    warmup: float = Field(
        0.03,
        ge=0,
        description="linear warm-up from peak / steps: below 1 a share of all steps, else their number",
    )
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="learning rate after the warm-up"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="clip gradients to this norm; 0 for no clipping")
    accumulate: int = Field(1, ge=1, description="batches per step")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast type; `auto` is bf16 on a GPU that supports it, else fp32"
    )
    gradient_checkpointing: bool = Field(False, description="trade compute for memory in the language model")
    seed: int = Field(0, ge=0, lt=1 << 32, description="random seed of initialisation, shuffling and dropout")
    workers: int | None = Field(None, ge=0, le=256, description="data loading processes; empty for 0 on a CPU, else up to 8")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 for one per epoch, or none of a stream")
    evaluate_every: int = Field(
        0, ge=0, description="steps between validations, if there are validation data; 0 for one per epoch"
    )
    evaluate_limit: int | None = Field(None, ge=1, description="validate on the first examples only, this many; empty for all")
    metric: str | None = Field(
        None,
        description="the validation score that chooses the best checkpoint: a metric, `TASK/METRIC` of several tasks, or `loss`; "
        "empty for the first metric of the first task",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many validations in a row without a better score; empty to go on"
    )
    report_to: list[str] = Field(
        default_factory=list, description="experiment trackers: tensorboard, trackio, wandb, mlflow, ...; empty for none"
    )
    log_every: int = Field(20, ge=1, description="steps between entries of the loss curve")
    keep_images_together: bool = Field(
        False, description="shuffle images instead of examples: all examples of an image are in one batch, which encodes it once"
    )
    cache_features: bool | None = Field(
        None,
        description="encode each distinct image once, before the first epoch, and store its features on disk; empty to do so if "
        "it saves time: if the encoder is frozen and the run would encode an image more than once",
    )
    modality_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance of each input of an example to be treated as missing in a step, with several encoders",
    )
    blank_images: bool = Field(False, description="replace each image with a blank one, to train a blind control")

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
