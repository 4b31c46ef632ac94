"""A config that is valid, and files of YAML."""

from pathlib import Path

CONFIG = {
    "base_model": "m",
    "plugins": ["axolotl_distill"],
    "datasets": [{"path": "./store", "type": "axolotl_distill.store"}],
    "distill": {
        "alpha": 0.5,
        "temperature": 2.0,
        "divergence": "forward_kl",
        "support": "tail_bucket",
        "capture": {
            "teacher": {"model": "t", "server": {"base_url": "http://h:1/v1", "engine": "vllm"}},
            "output": "./store",
            "datasets": [{"path": "a.jsonl", "type": "chat_template"}],
            "k": 16,
            "temperatures": [1.0, 2.0],
        },
    },
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
