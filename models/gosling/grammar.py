"""What a grammar lets through, by the server's own grammar and masks: schema fill as it is served.

The rest of this folder stands alone; this file looks at the server, as it is the server's constraint that is measured.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from llguidance import LLMatcher
from torch import Tensor

from rookery.server.text.chat_template import Prompt
from rookery.server.text.grammar import response_grammar
from rookery.server.text.world import WorldTokenizer

tokenizer = cache(WorldTokenizer.from_file)


def schema_of(types: Mapping[str, str]) -> dict[str, object]:
    """The JSON schema of an object with exactly these fields, in this order."""
    return {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in types.items()},
        "required": list(types),
        "additionalProperties": False,
    }


def allowed_tokens(vocabulary: Path, types: Mapping[str, str], answer: Sequence[int]) -> Tensor:
    """For each token of the answer what the grammar of `response_format` allows at its place, [K, vocab_size] bool.

    Args:
        vocabulary: file of the vocabulary.
        types: "string" or "number" for each field.
        answer: K tokens that match the grammar, from the blank after `Assistant:` to the last brace.

    Raises:
        ValueError: the answer does not match the grammar.
    """
    world = tokenizer(vocabulary)
    demanded = {"type": "json_schema", "json_schema": {"name": "fill", "schema": schema_of(types)}}
    grammar = response_grammar(demanded, Prompt("", strip_leading_space=True))
    assert grammar is not None
    matcher = LLMatcher(world.llguidance, grammar, log_level=0)
    rows = []
    for token in answer:
        mask = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
        rows.append((mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[: world.vocab_size].bool())
        if not matcher.consume_token(token):
            raise ValueError(f"the grammar does not allow token {token}: {matcher.get_error()[:200]}")
    if not matcher.is_accepting():
        raise ValueError("the answer ends before the grammar does")
    return torch.stack(rows)
