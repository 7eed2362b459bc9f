"""Codecs of the cache of keys and values as hardware; `quantizers.kv_cache` has the software references."""
