"""Text to tokens and back: tokenizers, chat templates, detokenizer. Knows nothing of the engine."""
