"""lm-eval's local-completions against a server: `python lm_eval_client.py URL MODEL TOKENIZER_FOLDER`.

Runs lm-eval's own command line on two tasks with local data: one of log-likelihoods, one of generation.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

url, model, tokenizer = sys.argv[1:4]
FACTS = [("The capital of France is", "Paris", "Berlin"), ("Two plus two is", "four", "blue")]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
"""
CHOICE = """
doc_to_target: 0
doc_to_choice: "{{[right, wrong]}}"
metric_list: [{metric: acc}]
"""
GENERATION = """
doc_to_target: "{{right}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    data = folder / "facts.jsonl"
    rows = [{"text": t, "right": f" {r}", "wrong": f" {w}"} for t, r, w in FACTS * 4]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task, kind, rest in (
        ("toy_choice", "multiple_choice", CHOICE),
        ("toy_generation", "generate_until", GENERATION),
    ):
        head = TASK.format(name=task, data=data, kind=kind)
        (folder / f"{task}.yaml").write_text(head + rest)
    for tokenized in ("True", "False"):
        arguments = {
            "model": model,
            "base_url": f"{url}/v1/completions",
            "tokenizer": tokenizer,
            "tokenized_requests": tokenized,
            "num_concurrent": "4",
            "max_retries": "1",
        }
        output = folder / f"out-{tokenized}"
        subprocess.run(
            [Path(sys.executable).with_name("lm_eval"), "--model", "local-completions"]
            + ["--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())]
            + ["--tasks", "toy_choice,toy_generation", "--include_path", str(folder)]
            + ["--output_path", str(output), "--batch_size", "4"],
            check=True,
        )
        (found,) = output.rglob("results*.json")
        results = json.loads(found.read_text())["results"]
        accuracy = results["toy_choice"]["acc,none"]
        assert 0.5 <= accuracy <= 1, accuracy
        assert "exact_match,none" in results["toy_generation"]
print(f"loglikelihood (accuracy {accuracy:.2f}) and generate_until, tokenised by either side")
