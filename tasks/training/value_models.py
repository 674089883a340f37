"""PPO's value models: a head on the policy's own features, or a trunk beside the policy's with a head.

The head alone takes the features that the policy's output layer saw, kept from decoding. No gradient goes from it into
the policy: the two cannot disturb each other, no value coefficient has to be found, and fitting the head costs no
forward pass. What is given up: features are the policy's, so the value model is as good as they are. A trunk of its own
learns features for values, at the price of forward and backward passes; as an adapter it is on the policy's weights.
"""

import torch
from torch import nn

from tasks.sampling.local import CausalLM, output_layer
from tasks.training.rollouts import Rollouts, sequences


class ValueHead(nn.Module):
    """Features `[..., width]` to values `[...]`: one hidden layer, zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(features))).squeeze(-1)


class SharedValue(nn.Module):
    """The values before each sampled token of some rows, `[rows, longest among them]`, of the policy's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = ValueHead(width)

    def forward(self, rollouts: Rollouts, rows: torch.Tensor) -> torch.Tensor:
        assert rollouts.features is not None
        return self.head(rollouts.features[rows, : int(rollouts.lengths[rows].max())])


class SeparateValue(nn.Module):
    """The same of a language model's body with a head on it, neither of them the policy's."""

    def __init__(self, trunk: CausalLM) -> None:
        super().__init__()
        self.trunk = trunk.eval()  # no dropout: values before and after a step must be comparable
        self.head = ValueHead(output_layer(trunk).weight.shape[1]).to(trunk.device)

    def forward(self, rollouts: Rollouts, rows: torch.Tensor) -> torch.Tensor:
        ids, keep = sequences(rollouts, rows)
        inner = getattr(self.trunk, "get_base_model", lambda: self.trunk)()
        body = getattr(inner, inner.base_model_prefix)  # an adapter's layers are inside it
        features = body(input_ids=ids, use_cache=False).last_hidden_state[keep]
        mask = rollouts.mask[rows, : int(rollouts.lengths[rows].max())]
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, self.head(features.float()))
