"""The fields every gradient-training stage shares."""

from typing import Literal

from pydantic import Field

from tasks.models.adapters import AdapterRecipe, LoraRecipe
from tasks.recipe import Part


class Hyperparameters(Part):
    """How a model is fitted: epochs, batches, step sizes."""

    adapter: AdapterRecipe = LoraRecipe()
    """What is trained: a LoRA adapter or every weight."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the data."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warmup: to zero by the end, or not at all."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    batch_size: int = Field(default=16, ge=1)
    """Rows (SFT) or prompts (reward, DPO) in one forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before one step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this norm."""
    max_length: int = Field(default=1024, ge=8)
    """Longer rows (in tokens, prompt and completion) are dropped and counted, never cut."""
    dropped_limit: float = Field(default=0.2, ge=0, le=1)
    """Training is refused when a larger share of the rows is dropped."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
