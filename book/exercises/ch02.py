"""Chapter 2: sequences for which a memory has contiguous slots. Check yours with `python -m book.check 2`."""


def slots_that_fit(config, memory, slot_tokens, element_size):
    """Whole slots of `slot_tokens` tokens that `memory` bytes hold.

    config: num_layers, num_heads, num_kv_heads and head_dim of a model.
    element_size: bytes of one number in the cache.
    """
    raise NotImplementedError
