"""What /v1/responses remembers: chains, forks, conversations, deletion, cancelling, and whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource
from openai.types.responses import ResponseItemList

from rookery.server.config import Config
from rookery.server.errors import StartupError

from .api_server import MODEL, Api, api_in_process, says
from .test_api_responses import PATH, prompt, respond

CONVERSATIONS = "/v1/conversations"


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        api.engine.reply = says(" Yes.")
        yield api


async def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()["error"]
    return body


async def test_a_turn_goes_on_from_the_one_before(api: Api) -> None:
    first = await respond(api, "One?", instructions="Be brief.")
    second = await respond(api, "Two?", previous_response_id=first.id)
    assert prompt(api) == "User: One?\n\nAssistant: Yes.\n\nUser: Two?\n\nAssistant:"
    assert second.previous_response_id == first.id and second.instructions is None
    await respond(api, "Three?", previous_response_id=second.id, instructions="Be long.")
    assert prompt(api).startswith("System: Be long.\n\nUser: One?\n\nAssistant: Yes.\n\nUser: Two?")


async def test_any_response_can_be_forked(api: Api) -> None:
    root = await respond(api, "One?")
    branches = [await respond(api, text, previous_response_id=root.id) for text in ("A?", "B?")]
    for branch, text in zip(branches, ("A?", "B?"), strict=True):
        await respond(api, "And?", previous_response_id=branch.id)
        assert prompt(api) == (
            f"User: One?\n\nAssistant: Yes.\n\nUser: {text}\n\nAssistant: Yes.\n\nUser: And?\n\nAssistant:"
        )
    await respond(api, "C?", previous_response_id=root.id)
    assert prompt(api) == "User: One?\n\nAssistant: Yes.\n\nUser: C?\n\nAssistant:"


async def test_thoughts_are_no_part_of_what_follows() -> None:
    async with api_in_process(config=Config(served_model_name=(MODEL,), chat_template="g1")) as api:
        api.engine.reply = says(">\nHmm.\n</think>\n\nFour.")
        first = await respond(api, "2+2?", reasoning={"effort": "low"})
        await respond(api, "Sure?", previous_response_id=first.id)
        assert "Hmm" not in prompt(api) and "Assistant: Four.\n\nUser: Sure?" in prompt(api)


async def test_a_stored_response_is_what_was_answered(api: Api) -> None:
    answer = (await api.client.post(PATH, json={"model": MODEL, "input": "hi", "metadata": {"k": "v"}})).json()
    assert (await api.client.get(f"{PATH}/{answer['id']}")).json() == answer
    told = await api.client.delete(f"{PATH}/{answer['id']}")
    assert told.json() == {"id": answer["id"], "object": "response", "deleted": True}
    for request in (api.client.get, api.client.delete):
        assert (await error(await request(f"{PATH}/{answer['id']}"), 404))["code"] == "response_not_found"
    missing = await api.client.post(PATH, json={"model": MODEL, "input": "x", "previous_response_id": answer["id"]})
    assert (await error(missing, 404))["param"] == "previous_response_id"


async def test_what_follows_a_deleted_response_keeps_it(api: Api) -> None:
    first = await respond(api, "One?")
    second = await respond(api, "Two?", previous_response_id=first.id)
    await api.client.delete(f"{PATH}/{first.id}")
    await respond(api, "Three?", previous_response_id=second.id)
    assert prompt(api).startswith("User: One?\n\nAssistant: Yes.\n\nUser: Two?")


async def test_store_false_leaves_nothing(api: Api) -> None:
    first = await respond(api, "One?")
    second = await respond(api, "Two?", previous_response_id=first.id, store=False)
    assert second.previous_response_id == first.id
    await error(await api.client.get(f"{PATH}/{second.id}"), 404)
    await error(await api.client.get(f"{PATH}/{second.id}/input_items"), 404)


async def test_input_items_come_in_pages(api: Api) -> None:
    first = await respond(api, [{"role": "user", "content": f"{i}"} for i in range(5)])
    second = await respond(api, "last", previous_response_id=first.id)
    path = f"{PATH}/{second.id}/input_items"
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer = (await api.client.get(path, params={"limit": 3, "order": "asc", **after})).json()
        page = ResponseItemList.model_validate(answer, strict=True)
        seen += [item["content"][0]["text"] for item in answer["data"]]
        assert page.first_id == page.data[0].id and page.last_id == page.data[-1].id
        if not page.has_more:
            break
        after = {"after": page.last_id}
    assert seen == ["0", "1", "2", "3", "4", "Yes.", "last"]
    newest = (await api.client.get(path)).json()["data"]
    assert [item["content"][0]["text"] for item in newest] == seen[::-1]
    assert (await error(await api.client.get(path, params={"after": "msg_none"}), 400))["param"] == "after"
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
        await error(await api.client.get(path, params=wrong), 400)


async def test_a_conversation_collects_its_turns(api: Api) -> None:
    items = [{"role": "system", "content": "Be brief."}]
    made = (await api.client.post(CONVERSATIONS, json={"items": items, "metadata": {"k": "v"}})).json()
    conversation = Conversation.model_validate(made, strict=True)
    first = await respond(api, "One?", conversation=conversation.id)
    assert first.conversation is not None and first.conversation.id == conversation.id
    hidden = await respond(api, "Two?", conversation={"id": conversation.id}, store=False)
    await respond(api, "Three?", conversation=conversation.id)
    assert prompt(api) == (
        "System: Be brief.\n\nUser: One?\n\nAssistant: Yes.\n\nUser: Two?\n\nAssistant: Yes.\n\n"
        "User: Three?\n\nAssistant:"
    )
    await error(await api.client.get(f"{PATH}/{hidden.id}"), 404)
    listed = (await api.client.get(f"{CONVERSATIONS}/{conversation.id}/items?order=asc")).json()
    assert len(listed["data"]) == 7 and not listed["has_more"]
    changed = await api.client.post(f"{CONVERSATIONS}/{conversation.id}", json={"metadata": {"k": "w"}})
    assert changed.json() == {**made, "metadata": {"k": "w"}}
    assert (await api.client.get(f"{CONVERSATIONS}/{conversation.id}")).json() == changed.json()
    gone = (await api.client.delete(f"{CONVERSATIONS}/{conversation.id}")).json()
    assert ConversationDeletedResource.model_validate(gone, strict=True).deleted
    answer = await api.client.post(PATH, json={"model": MODEL, "input": "x", "conversation": conversation.id})
    assert (await error(answer, 404))["code"] == "conversation_not_found"
    assert (await api.client.get(f"{PATH}/{first.id}")).status_code == 200  # responses outlive it


async def test_an_empty_conversation_needs_no_body(api: Api) -> None:
    made = (await api.client.post(CONVERSATIONS)).json()
    assert made["metadata"] == {} and (await api.client.get(f"{CONVERSATIONS}/{made['id']}/items")).json()["data"] == []
    await respond(api, "One?", conversation=made["id"])
    assert prompt(api) == "User: One?\n\nAssistant:"


async def test_items_are_added_to_a_conversation_and_read_one_by_one(api: Api) -> None:
    conversation = (await api.client.post(CONVERSATIONS)).json()["id"]
    path = f"{CONVERSATIONS}/{conversation}/items"
    added = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Aha."}]
    listed = (await api.client.post(path, json={"items": added})).json()
    assert [item["role"] for item in listed["data"]] == ["user", "assistant"] and not listed["has_more"]
    await respond(api, "Two?", conversation=conversation)
    assert prompt(api) == "User: One?\n\nAssistant: Aha.\n\nUser: Two?\n\nAssistant:"
    later = (await api.client.post(path, json={"items": added[:1]})).json()
    everything = (await api.client.get(f"{path}?order=asc")).json()["data"]
    assert len(everything) == 5 and everything[-1] == later["data"][0]
    for item in everything:
        assert (await api.client.get(f"{path}/{item['id']}")).json() == item
    await error(await api.client.get(f"{path}/msg_unknown"), 404)
    await error(await api.client.post(path.replace("conv_", "conv_x"), json={"items": added}), 404)
    refused: tuple[dict[str, object], ...] = ({"items": []}, {"items": added * 11}, {})
    for wrong in refused:
        assert (await error(await api.client.post(path, json=wrong), 400))["param"] == "items"


async def test_the_input_is_counted_as_it_would_be_read(api: Api) -> None:
    first = await respond(api, "One?")
    asked = {"input": "Two?", "previous_response_id": first.id, "instructions": "Be brief."}
    counted = (await api.client.post(f"{PATH}/input_tokens", json={"model": MODEL, **asked})).json()
    submitted = len(api.engine.submitted)
    second = await respond(api, **asked)
    assert second.usage is not None and len(api.engine.submitted) == submitted + 1
    assert counted == {"object": "response.input_tokens", "input_tokens": second.usage.input_tokens}


async def until_running(api: Api, count: int = 1) -> None:
    while len(api.engine.submitted) < count:
        await asyncio.sleep(0)


async def test_a_conversation_has_one_writer(api: Api) -> None:
    conversation = (await api.client.post(CONVERSATIONS)).json()["id"]
    body = {"model": MODEL, "input": "One?", "conversation": conversation}
    api.engine.gate.clear()
    running = asyncio.create_task(api.client.post(PATH, json=body))
    await until_running(api)
    assert (await error(await api.client.post(PATH, json=body), 409))["code"] == "session_busy"
    items = {"items": [{"role": "user", "content": "x"}]}
    assert (await error(await api.client.post(f"{CONVERSATIONS}/{conversation}/items", json=items), 409))["message"]
    api.engine.gate.set()
    assert (await running).status_code == 200
    assert (await api.client.post(PATH, json=body)).status_code == 200


async def test_a_failed_turn_leaves_the_conversation_as_it_was(api: Api) -> None:
    conversation = (await api.client.post(CONVERSATIONS)).json()["id"]
    body = {"model": MODEL, "input": "One?", "conversation": conversation}
    api.engine.fail_after = 1
    assert (await api.client.post(PATH, json=body)).status_code == 500
    streamed = await api.client.post(PATH, json={**body, "stream": True})
    assert "response.failed" in streamed.text
    refused = await api.client.post(PATH, json={**body, "temperature": 0, "model": "none"})
    assert refused.status_code == 404
    api.engine.fail_after = None
    await respond(api, "Two?", conversation=conversation)
    assert prompt(api) == "User: Two?\n\nAssistant:"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_in_progress_is_seen_and_cancelled(api: Api, stream: bool) -> None:
    conversation = (await api.client.post(CONVERSATIONS)).json()["id"]
    api.engine.gate.clear()
    body = {"model": MODEL, "input": "One?", "conversation": conversation, "stream": stream}
    running = asyncio.create_task(api.client.post(PATH, json=body))
    await until_running(api)
    id = api.engine.submitted[-1].id.rpartition("-")[0]
    assert (await api.client.get(f"{PATH}/{id}")).json()["status"] == "in_progress"
    assert (await api.client.post(f"{PATH}/{id}/cancel")).json()["status"] == "cancelled"
    answer = await running
    assert '"status":"cancelled"' in answer.text and answer.status_code == 200
    assert api.engine.cancelled
    api.engine.gate.set()
    assert (await api.client.get(f"{PATH}/{id}")).json()["status"] == "cancelled"
    assert (await api.client.post(f"{PATH}/{id}/cancel")).json()["status"] == "cancelled"
    await error(await api.client.post(PATH, json={"model": MODEL, "input": "x", "previous_response_id": id}), 400)
    await respond(api, "Two?", conversation=conversation)
    assert prompt(api) == "User: Two?\n\nAssistant:"


async def test_a_response_deleted_in_progress_leaves_nothing(api: Api) -> None:
    api.engine.gate.clear()
    running = asyncio.create_task(api.client.post(PATH, json={"model": MODEL, "input": "One?"}))
    await until_running(api)
    id = api.engine.submitted[-1].id.rpartition("-")[0]
    assert (await api.client.delete(f"{PATH}/{id}")).json()["deleted"]
    await running
    await error(await api.client.get(f"{PATH}/{id}"), 404)


async def test_what_has_ended_cannot_be_cancelled(api: Api) -> None:
    answer = await respond(api)
    await error(await api.client.post(f"{PATH}/{answer.id}/cancel"), 400)
    await error(await api.client.get(f"{PATH}/{answer.id}?stream=true"), 400)


async def test_ids_belong_to_the_key_that_made_them() -> None:
    config = Config(served_model_name=(MODEL,), api_key=("one", "two"))
    async with api_in_process(config=config) as api:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        api.client.headers.update(one)
        mine = await respond(api)
        conversation = (await api.client.post(CONVERSATIONS)).json()["id"]
        api.client.headers.update(two)
        for id in (mine.id, "resp_unknown", "not an id", "a" * 1000, "%00"):
            for request, path in (
                (api.client.get, f"{PATH}/{id}"),
                (api.client.delete, f"{PATH}/{id}"),
                (api.client.post, f"{PATH}/{id}/cancel"),
                (api.client.get, f"{PATH}/{id}/input_items"),
            ):
                assert (await error(await request(path), 404))["type"] == "invalid_request_error"
        foreign, unknown = [
            await error(await api.client.post(PATH, json={"model": MODEL, "input": "x", field: id}), 404)
            for field, id in (("previous_response_id", mine.id), ("previous_response_id", "resp_unknown"))
        ]
        assert foreign["message"].replace(mine.id, "resp_unknown") == unknown["message"]
        await error(await api.client.get(f"{CONVERSATIONS}/{conversation}"), 404)
        await error(await api.client.post(PATH, json={"model": MODEL, "input": "x", "conversation": conversation}), 404)
        await error(await api.client.delete(f"{CONVERSATIONS}/{conversation}"), 404)
        api.client.headers.update(one)
        assert (await api.client.get(f"{PATH}/{mine.id}")).status_code == 200


async def test_a_store_that_does_not_work_fails_the_turn_and_nothing_else(tmp_path: Path) -> None:
    config = Config(served_model_name=(MODEL,), data_dir=tmp_path / "folder")
    async with api_in_process(config=config) as api:
        (tmp_path / "folder" / "responses.sqlite").mkdir()  # where the database would be made
        body = {"model": MODEL, "input": "hi"}
        whole = await api.client.post(PATH, json=body)
        assert (await error(whole, 507))["code"] == "storage_failed" and "folder" not in whole.text
        streamed = await api.client.post(PATH, json={**body, "stream": True})
        assert "event: error" in streamed.text and "event: response.failed" in streamed.text
        assert "response.completed" not in streamed.text
        assert (await api.client.post(PATH, json={**body, "store": False})).status_code == 200


async def test_a_folder_that_cannot_be_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = Config(served_model_name=(MODEL,), data_dir=tmp_path / "file" / "folder")
    with pytest.raises(StartupError, match="cannot be used: Not a directory"):
        async with api_in_process(config=config):
            raise AssertionError("it started")


async def test_everything_outlives_a_restart_with_a_data_folder(tmp_path: Path) -> None:
    config = Config(served_model_name=(MODEL,), data_dir=tmp_path / "data")
    async with api_in_process(config=config) as api:
        api.engine.reply = says(" Yes.")
        conversation = (await api.client.post(CONVERSATIONS)).json()["id"]
        first = await respond(api, "One?", conversation=conversation)
    async with api_in_process(config=config) as api:
        assert (await api.client.get(f"{PATH}/{first.id}")).json()["output"][0]["content"][0]["text"] == "Yes."
        for field, id in (("previous_response_id", first.id), ("conversation", conversation)):
            await respond(api, "Two?", **{field: id})
            assert prompt(api) == "User: One?\n\nAssistant: Yes.\n\nUser: Two?\n\nAssistant:"
