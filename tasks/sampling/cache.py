"""A key-value cache that is allocated once and from which finished rows are taken in place.

`DynamicCache` copies the whole cache at every token (`torch.cat`) and again for every change of rows. Here a layer
owns one buffer for the longest completion; a new token is written into its column, and a row that leaves is overwritten
by the last live row. Layers of other kinds (sliding windows, linear attention, shared) stay the library's own.
"""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values `[rows, heads, capacity, head_dim]`; `keys` and `values` are the views now in use."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.rows, self.capacity = rows, capacity
        self.length = 0
        self.live = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.live = key_states.shape[0]
        _, heads, _, width = key_states.shape
        self.key_buffer = key_states.new_empty(self.rows, heads, self.capacity, width)
        _, heads, _, width = value_states.shape
        self.value_buffer = value_states.new_empty(self.rows, heads, self.capacity, width)
        self._show()
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.key_buffer[: self.live, :, self.length : end] = key_states
        self.value_buffer[: self.live, :, self.length : end] = value_states
        self.length = end
        self._show()
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes the former row `beam_idx[i]`; only rows that change are copied, and their number may change."""
        index = beam_idx.to(self.device)
        moved = (index != torch.arange(len(index), device=self.device)).nonzero().squeeze(-1)
        if len(moved):
            source = index[moved]
            self.key_buffer[moved, :, : self.length] = self.key_buffer[source, :, : self.length]
            self.value_buffer[moved, :, : self.length] = self.value_buffer[source, :, : self.length]
        self.live = len(index)
        self._show()

    def _show(self) -> None:
        self.keys = self.key_buffer[: self.live, :, : self.length]
        self.values = self.value_buffer[: self.live, :, : self.length]


def preallocated_cache(config: PreTrainedConfig, rows: int, capacity: int) -> Cache:
    """The cache a model of this config uses, its full-attention layers preallocated for `rows` x `capacity` tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer(rows, capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def compaction(finished: torch.Tensor) -> torch.Tensor:
    """Which former row each remaining row comes from: live rows stay, holes are filled from the end.

    `finished` is bool `[rows]`; the result is int64 `[live rows]`, as `reorder_cache` takes it.
    """
    live = (~finished).nonzero().squeeze(-1)
    order = torch.arange(len(live), device=finished.device)
    holes = finished[: len(live)].nonzero().squeeze(-1)
    order[holes] = live[live >= len(live)]
    return order
