"""`axolotl distill verify`."""

from typing import Any

from axolotl_distill.commands.say import say
from axolotl_distill.store import verify_store


def run(path: str, *, config: str | None) -> dict[str, Any]:
    """Hashes and structure; with a config, everything training would check before it starts.

    Returns what --json prints; what is wrong is an error and no report.
    """
    store = verify_store(path)
    files = sum(len(shard.files) for shard in store.manifest.shards)
    say(f"{path}: {files} files as the manifest says, {store.num_records:,} records")
    if config is not None:
        from axolotl_distill.host.checks import check_store
        from axolotl_distill.host.tokenise import load_config

        cfg, args = load_config(config)
        check_store(cfg, args, store)
        say(f"{config}: tokenizer, student's vocabulary and loss fit the store")
    return {"store": path, "files": files, "records": store.num_records, "config": config}
