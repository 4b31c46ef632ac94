"""`axolotl distill verify`."""

import click

from axolotl_distill.store import verify_store


def run(path: str, *, config: str | None) -> None:
    """Hashes and structure; with a config, everything training would check before it starts."""
    store = verify_store(path)
    files = sum(len(shard.files) for shard in store.manifest.shards)
    click.echo(f"{path}: {files} files as the manifest says, {store.num_records:,} records")
    if config is None:
        return
    from axolotl_distill.data.checks import check_store
    from axolotl_distill.data.source import load_config

    cfg, args = load_config(config)
    check_store(cfg, args, store)
    click.echo(f"{config}: tokenizer, student's vocabulary and loss fit the store")
