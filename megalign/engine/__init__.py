"""The thin engine over Megatron-Core: the only room that imports `megatron`."""
