"""Text -> shards of tokens for a language model: bytes, words or word pieces."""
