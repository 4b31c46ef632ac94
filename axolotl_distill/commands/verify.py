"""`axolotl distill verify`."""

from typing import Any

from axolotl_distill.commands.say import say, warn
from axolotl_distill.errors import ConfigError
from axolotl_distill.rollout.kept import is_rollouts
from axolotl_distill.store import verify_store


def run(path: str, *, config: str | None) -> dict[str, Any]:
    """Hashes and structure; with a config, everything training would check before it starts.

    Returns what --json prints. Raises StoreError for a store that is not whole, and with a config
    one error for all that is wrong with it, whose `report` is what --json prints.
    """
    if is_rollouts(path):
        from axolotl_distill.commands.rollouts import shown

        if config is not None:
            raise ConfigError(
                f"{path} holds rollouts; `--config` is for a store. Name {path}/store."
            )
        return {"rollouts": path, **shown(path)}
    store = verify_store(path)
    files = sum(len(shard.files) for shard in store.manifest.shards)
    say(f"{path}: {files} files as the manifest says, {store.num_records:,} records")
    teacher = store.manifest.teacher
    if "cross_tokenizer" in teacher:
        say(
            f"{path}: for the student's tokenizer {store.manifest.tokenizer['name']}, of a teacher "
            f"with its own, {teacher['tokenizer']} (cross_tokenizer: {teacher['cross_tokenizer']})"
        )
    report: dict[str, Any] = {"store": path, "files": files, "records": store.num_records}
    if config is None:
        return {**report, "config": None, "findings": []}
    from axolotl_distill.host.checks import verify_findings

    found = verify_findings(config, store)
    report |= {"config": config, "findings": [finding.as_json() for finding in found]}
    for finding in found:
        if finding.error is None:
            warn(str(finding))
    wrong = [finding for finding in found if finding.error is not None]
    if wrong:
        lines = "".join(f"\n* {finding}" for finding in wrong)
        error = ConfigError(f"{config} cannot train on {path}:{lines}")
        error.report = report
        raise error
    say(f"{config}: tokenizer, student's vocabulary and loss fit the store")
    return report
