"""Text: vocabularies, chat templates, and the readers of a reply (characters, stops, reasoning, tool calls).

A reply passes `detokenizer` (ids → text), `reasoning` (thoughts | answer), `tool_stream` (answer | calls) and the stop
scanner; a request passes `chat_template` (messages → prompt), `tokenizer` (prompt → ids) and `grammar`.
"""
