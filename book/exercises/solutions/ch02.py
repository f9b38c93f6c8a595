"""Chapter 2: sequences for which a memory has contiguous slots. A solution, and answers that are wrong, by what is wrong with them."""


def slots_that_fit(config, memory, slot_tokens, element_size):
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return memory // (slot_tokens * numbers * element_size)


def keys_only(config, memory, slot_tokens, element_size):
    numbers = config.num_layers * config.num_kv_heads * config.head_dim
    return memory // (slot_tokens * numbers * element_size)


def query_heads(config, memory, slot_tokens, element_size):
    numbers = 2 * config.num_layers * config.num_heads * config.head_dim
    return memory // (slot_tokens * numbers * element_size)


WRONG = {
    "keys without values": keys_only,
    "query heads instead of K/V heads": query_heads,
}
