"""A recipe on disk, its command in this process, and a server that answers it."""

import json

import yaml
from click.testing import CliRunner

from axolotl_distill.cli import distill
from axolotl_distill.trajectories import read_trajectories

CHAT = "/v1/chat/completions"


def say(body, **message):
    """An answer that shows which request it belongs to."""
    told = f"{body['messages'][-1]['content']} / {body['seed']}"
    return {
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": told, **message},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 30, "total_tokens": 40},
    }


class Recipe:
    """A recipe over `count` prompts, and its command in this process."""

    def __init__(self, folder, url, count, *, server=None, teacher=None, **generate):
        self.folder = folder
        self.output = folder / "out"
        self.values = {
            "teacher": {
                "model": "Qwen/Qwen3-8B",
                "server": {"base_url": url, "concurrency": 8, "timeout": 5.0, **(server or {})},
                **(teacher or {}),
            },
            "generate": {"output": str(self.output), "prompts": [], **generate},
        }
        self.prompts(count)

    def prompts(self, count):
        path = self.folder / "prompts.jsonl"
        rows = [{"prompt": f"question {i}", "answer": i} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.values["generate"]["prompts"] = [{"path": str(path)}]

    def run(self, *options):
        path = self.folder / "recipe.yml"
        path.write_text(yaml.safe_dump(self.values))
        return CliRunner().invoke(distill, ["generate", str(path), *options])

    def rows(self):
        return list(read_trajectories(self.output))

    def failed(self):
        return list(read_trajectories(self.output / "failed"))
