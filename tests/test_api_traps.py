"""What OpenAI-compatible servers most often get wrong, and the tests that show it is right here.

The table is read by a test, so that a test it names cannot be renamed or dropped unnoticed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TRAPS = {
    "echo with logprobs lists prompt and completion, the first null, the end token too": [
        "test_api_completions::test_scoring_with_echo_lists_every_prompt_token_and_the_first_is_null",
        "test_api_completions::test_echo_with_logprobs_lists_prompt_completion_and_the_end_token",
    ],
    "malformed JSON, NaN, bad UTF-8, lone surrogates are 400": [
        "test_api_errors::test_hostile_requests_get_4xx_and_a_good_one_is_served_after_each",
        "test_api_errors::test_json_is_strict_and_its_nesting_bounded",
    ],
    "errors have a param and a string code": [
        "test_api_errors::test_param_is_the_dotted_path_of_the_field",
        "test_api_schemas::test_a_wrong_value_is_refused_and_named",
        "test_api_chat::test_long_chats_are_refused_by_length",
        "test_api_auth::test_every_route_but_the_open_ones_needs_a_key",
    ],
    "an unknown model is a 404; GET /v1/models/{id}": [
        "test_api_models::test_an_unknown_model_is_a_404",
        "test_api_models::test_one_model_is_the_entry_of_the_list",
    ],
    "no part of a stop string leaks, and no held-back text is lost": [
        "test_text_detokenizer::test_stops_cut_at_the_first_complete_one",
        "test_text_detokenizer::test_held_text_is_given_at_the_end",
        "test_api_completions::test_streamed_and_whole_answers_are_equal",
    ],
    "characters of several bytes come whole": [
        "test_text_detokenizer::test_characters_come_whole_and_at_once",
        "test_text_detokenizer::test_any_bytes_join_to_the_plain_decode",
    ],
    "the usage chunk has no choices and comes only when asked for": [
        "test_api_completions::test_usage_comes_only_when_asked_for",
    ],
    "one terminal finish_reason, the role in the first delta only": [
        "test_api_chat::test_chunks_have_openai_s_shape",
        "test_api_chat::test_choices_are_separate",
    ],
    "tool deltas have an index, id and name first": [
        "test_api_tools::test_calls_stream_with_index_id_and_name_first",
    ],
    "tool_choice required and named are enforced": [
        "test_api_grammar::test_a_demanded_tool_call_is_enforced",
        "test_api_engine::test_a_random_model_calls_the_tool_it_must_call",
    ],
    "parameters out of range, of the wrong type or at odds are refused": [
        "test_api_schemas::test_a_wrong_value_is_refused_and_named",
        "test_api_schemas::test_values_that_contradict_each_other",
    ],
    "lists of prompts and n above 1: order, usage over all, streams": [
        "test_api_completions::test_a_batch_is_answered_in_order_with_usage_over_all",
        "test_api_engine::test_choices_differ_and_none_depends_on_the_others",
    ],
    "16 tokens are the default of completions, the server's limit that of chats": [
        "test_api_completions::test_sixteen_tokens_are_the_default",
        "test_api_chat::test_limits_of_the_completion",
    ],
    "a disconnect ends the work, a stream keeps the connection, 405 has Allow, request ids, no cache": [
        "test_api_openai_client::test_a_client_that_leaves_frees_its_place",
        "test_api_openai_client::test_a_connection_survives_a_stream",
        "test_api_errors::test_405_allows_what_the_route_takes",
        "test_api_errors::test_request_ids",
        "test_api_completions::test_stream_headers",
    ],
    "responses: numbered events of every kind in order, incomplete, text.format": [
        "test_api_responses::test_events_come_in_order_and_say_what_a_whole_answer_says",
        "test_api_responses::test_an_answer_cut_short_is_incomplete",
        "test_api_responses::test_formats_constrain_the_answer",
    ],
    "the first event leaves before the second token is computed": [
        "test_api_openai_client::test_the_first_event_leaves_before_the_second_token_is_computed",
    ],
    "logprobs are the official package's, and the greedy token is the top one": [
        "test_logprobs_official::test_log_probabilities_are_those_of_the_official_package",
        "test_engine_sampler::test_a_greedy_token_is_the_top_logprob_also_on_ties",
    ],
}
HERE = Path(__file__).parent


@pytest.mark.parametrize("trap", TRAPS)
def test_the_tests_of_a_trap_are_there(trap: str) -> None:
    for name in TRAPS[trap]:
        module, test = name.split("::")
        assert re.search(rf"^(async )?def {test}\(", (HERE / f"{module}.py").read_text(), re.MULTILINE), name
