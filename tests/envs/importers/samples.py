"""Small files in the true published layouts, written by hand. Their values are known, so that bins can be computed."""

import json
from pathlib import Path

from rayfold.envs.importers.importing import TraceFormat

__all__ = [
    "AZURE_2023",
    "AZURE_2024",
    "BURSTGPT",
    "FUNCTIONS_HEADER",
    "MOONCAKE",
    "function_row",
    "prometheus",
    "write_sample",
]

AZURE_2023 = (  # CRLF, and no line end after the last row, as published
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8\r\n"
    "2023-11-16 18:18:00.0000000,110,27"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:59.999999+00:00,2399,6\n"
    "2024-05-12 00:00:00+00:00,76,15\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    "118,GPT-4,417,276,693,API log\n"
    "119.5,ChatGPT,300,0,300,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}\n'
    '{"timestamp": 59999, "input_length": 1, "output_length": 2, "hash_ids": []}\n'
    '{"timestamp": 60000, "input_length": 915, "output_length": 355, "hash_ids": [0, 462]}\n'
)
FUNCTIONS_HEADER = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(str(m) for m in range(1, 1441)) + "\n"
SERVEGEN_TRACE = (
    "0,0,0,,0,0\n"
    "600,0.5,1.2,Gamma,0.7,0.4\n"
    "1200,0.07666666666666666,1.1562268743398203,Weibull,0.74802116038809,0.04435406418012669\n"
)
SERVEGEN_DATASET = json.dumps(
    {
        "0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{1: 0.25, 5: 0.75}"},
        "1200": {"input_tokens": "{100: 1.0}", "output_tokens": "{}"},
    }
)


def function_row(digit: str, trigger: str, counts: dict[int, int]) -> str:
    """A row of Azure Functions: ``counts`` by minute (from 1), else 0; the hashes repeat ``digit``."""
    minutes = ",".join(str(counts.get(m, 0)) for m in range(1, 1441))
    return ",".join([digit * 64, digit * 64, digit * 64, trigger, minutes]) + "\n"


def prometheus(metrics: list[tuple[dict[str, str], list[tuple[float, str]]]]) -> str:
    """A range query's answer with these metrics, each labels and samples."""
    result = [{"metric": labels, "values": [list(s) for s in samples]} for labels, samples in metrics]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def write_sample(fmt: TraceFormat, folder: Path) -> Path:
    """A valid file, or folder, of a format."""
    labels = {"__name__": "ray_serve_deployment_request_counter_total", "application": "app", "deployment": "d"}
    files = {
        TraceFormat.AZURE_LLM: ("AzureLLMInferenceTrace_code.csv", AZURE_2023),
        TraceFormat.BURSTGPT: ("BurstGPT_1.csv", BURSTGPT),
        TraceFormat.MOONCAKE: ("conversation_trace.jsonl", MOONCAKE),
        TraceFormat.AZURE_FUNCTIONS: (
            "invocations_per_function_md.anon.d01.csv",
            FUNCTIONS_HEADER + function_row("a", "http", {1: 3, 2: 1, 1440: 2}),
        ),
        TraceFormat.SERVEGEN: ("m-small/chunk-7-trace.csv", SERVEGEN_TRACE),
        TraceFormat.PROMETHEUS: ("answer.json", prometheus([(labels, [(1700000000, "3"), (1700000060, "10")])])),
    }
    name, text = files[fmt]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    if fmt == TraceFormat.SERVEGEN:
        path.with_name("chunk-7-dataset.json").write_text(SERVEGEN_DATASET)
    return path
