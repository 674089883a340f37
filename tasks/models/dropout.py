"""Models that say the same of a text each time, in training too."""

from typing import Any

import torch


def without_dropout(model: Any) -> Any:
    """The model with its dropout switched off, wherever its layers keep it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # what goes to a function, not through a module
                setattr(module, name, 0.0)
    return model
