"""The LM evaluation harness, `local-completions`: log-likelihoods and generations of two local tasks."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

URL = os.environ["ROOKERY_URL"]
ROWS = [
    {"question": "The sky is", "choices": [" blue", " a green stone"], "answer": 0},
    {"question": "Zürich liegt in der", "choices": [" Schweiz", " 東京"], "answer": 1},
    {"question": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0},
]
CHOOSE = """
task: local_choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
WRITE = """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def main() -> None:
    folder = Path("lm-eval").resolve()
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choose", CHOOSE), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    settings = {"model": "tiny", "base_url": f"{URL}/v1/completions", "num_concurrent": 2, "max_retries": 1}
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=settings,
        tasks=["local_choose", "local_write"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    choices = found["samples"]["local_choose"]
    assert len(choices) == len(ROWS)
    for sample in choices:
        for logprob, greedy in sample["filtered_resps"]:
            assert math.isfinite(logprob) and logprob < 0 and not greedy, sample
    for sample in found["samples"]["local_write"]:
        [text] = sample["filtered_resps"]
        assert "e" not in text and "\n" not in text, sample
    print({name: result for name, result in found["results"].items()})


if __name__ == "__main__":
    main()
