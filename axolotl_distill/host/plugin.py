"""DistillPlugin: which part of axolotl-distill answers which of Axolotl's hooks. Wiring only."""

from typing import Any

from axolotl.integrations.base import BasePlugin
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from axolotl_distill.config.choice import ChoiceArgs
from axolotl_distill.config.distill import DistillArgs, parse_distill
from axolotl_distill.config.reading import as_written

LOG = get_logger(__name__)


class DistillPlugin(BasePlugin):
    """Distillation for Axolotl. Does nothing unless the YAML has a `distill:` block."""

    _checked: Any = None
    """The config whose stores were checked."""
    _readings: Any = None
    """How live teachers read text, once they were checked; None where there is none, or one with
    another tokenizer."""
    _crossing: Any = None
    """A live teacher's tokenizer beside the student's, where it is another."""
    _objectives: Any = ()
    _hidden: Any = None
    """The layers of both that are paired, once they were found."""
    _source: Any = None
    """Of the signal; None where there is text alone."""

    def register(self, cfg: Any) -> None:
        """Refuse a wrong config, and name the dataset types as Axolotl can find them."""
        from axolotl_distill.host.checks import config_findings, missing_block
        from axolotl_distill.host.datasets.types import resolve_types
        from axolotl_distill.host.findings import enforce

        if cfg.get("distill") is None:
            enforce(missing_block(cfg))
            LOG.warning("plugins: axolotl_distill is on but there is no `distill:` block.")
            return
        from axolotl_distill.host.compat import ask_around_reading, settle_precision

        block = _plain(cfg["distill"])
        if cfg.get("axolotl_config_path"):
            block = as_written(cfg["axolotl_config_path"], block)
            cfg["distill"] = DictDefault(block) if isinstance(block, dict) else block
        args = parse_distill(block, cfg.get("datasets"))
        enforce(config_findings(cfg, args))
        settle_precision(cfg)
        for key in ("datasets", "test_datasets"):
            resolve_types(cfg.get(key))
        ask_around_reading(self.load_datasets, self.look_at_rows)

    def get_input_args(self) -> str:
        return "axolotl_distill.config.distill.DistillConfig"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Check the stores against tokenizer and student, before any row or weight is read."""
        if not _is_on(cfg) or self._checked is cfg:
            return
        from axolotl_distill.host.compat import prepare_cpu_launch
        from axolotl_distill.host.datasets.types import bring_near, cache_place, follow_content
        from axolotl_distill.host.telling import tell_rows

        for datasets in (cfg.datasets, cfg.test_datasets):
            bring_near(datasets, cache_place(cfg))
        self._check(cfg)
        follow_content(cfg.datasets)
        follow_content(cfg.test_datasets)
        for datasets in (cfg.datasets, cfg.test_datasets):
            tell_rows(datasets, _args(cfg))
            if self._crossing is not None:
                self._crossing.read_too(datasets)
        prepare_cpu_launch(cfg)

    def look_at_rows(self, cfg: Any, training: Any, evaluation: Any) -> None:
        """What the rows tell their teachers, once they are made and before a weight is read."""
        if not _is_on(cfg):
            return
        from axolotl_distill.host.telling import EVALUATION, TRAINING, check_told

        check_told({TRAINING: training, EVALUATION: evaluation}, cfg, _args(cfg))

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        if not _is_on(cfg):
            return None
        from axolotl_distill.host.compat import has_accelerator

        training_args = {"average_tokens_across_devices": True}
        if not has_accelerator():
            training_args["use_cpu"] = True
        return training_args

    def get_collator_cls_and_kwargs(
        self, cfg: Any, is_eval: bool = False
    ) -> tuple[type, dict[str, Any]] | None:
        if not _is_on(cfg):
            return None
        from axolotl_distill.host.collator import TeacherCollator
        from axolotl_distill.host.compat import base_collator
        from axolotl_distill.host.datasets.types import all_stores, weighs_thinking

        return TeacherCollator, {
            **base_collator(cfg, is_eval),
            "stores": all_stores(cfg),
            "temperature": _args(cfg).temperature,
            "weighted": weighs_thinking([*(cfg.datasets or []), *(cfg.test_datasets or [])]),
            "paired": self._crossing is not None,
            "chosen": isinstance(_args(cfg).teacher, ChoiceArgs),
            "without": () if self._hidden is not None else ("hidden",),
            "shown": any(t.context_column for t in _args(cfg).teachers.values()),
        }

    def post_model_load(self, cfg: Any, model: Any) -> None:
        if not _is_on(cfg) or self._checked is None:
            # Without datasets nothing is trained: `axolotl inference`, `merge-lora`.
            return
        from axolotl_distill.heads.split import is_tensor_parallel
        from axolotl_distill.host.compat import quiet_other_ranks, shards_the_student
        from axolotl_distill.host.datasets.types import all_stores
        from axolotl_distill.host.live_checks import with_the_student
        from axolotl_distill.objectives.forward import attach_distill_forward
        from axolotl_distill.objectives.hidden import HiddenObjective
        from axolotl_distill.objectives.logits import logits_objective
        from axolotl_distill.signal.source import signal_source

        for package in ("heads", "objectives", "signal", "teachers"):
            quiet_other_ranks(f"axolotl_distill.{package}")
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = self._hidden
        layers = () if hidden is None else hidden.teacher_layers
        args = with_the_student(_args(cfg))
        if self._crossing is not None:
            source = self._crossing.source(causal_lm)
            objectives: list[Any] = [self._crossing.objective(_args(cfg), source)]
        else:
            source = signal_source(args, all_stores(cfg), causal_lm, self._readings, layers)
            # It runs the head outside of the window in which a sharded one is whole.
            overlap = args.on_policy is not None and not shards_the_student()
            objectives = [logits_objective(args, source, overlap=overlap)]
        self._source, self._objectives = source, objectives
        if hidden is not None:
            made = HiddenObjective(hidden.args, hidden.pairs, hidden.widths)
            objectives.append(made.to(next(causal_lm.parameters()).device))
        attach_distill_forward(causal_lm, objectives, source)
        if is_tensor_parallel(causal_lm):
            from axolotl_distill.host.tensor_parallel import complete

            complete(causal_lm)

    def get_trainer_cls(self, cfg: Any) -> type | None:
        if not _is_on(cfg):
            return None
        from axolotl_distill.host.trainer import AxolotlDistillTrainer

        return AxolotlDistillTrainer

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Look at what is in force: now, for evaluation too, and when training begins."""
        if not _is_on(cfg):
            return []
        from axolotl_distill.host.compat import tensor_parallel_ranks
        from axolotl_distill.host.datasets.types import all_stores
        from axolotl_distill.host.hidden import check_hidden_trainer
        from axolotl_distill.host.in_force import InForce, check_trainer
        from axolotl_distill.host.live_checks import check_live_trainer

        stores = all_stores(cfg)
        check_trainer(trainer, stores)
        cache = _args(cfg).cache
        if cache is not None and cache.shuffle == "shards":
            trainer.shard_window = cache.window
        if self._hidden is not None:
            check_hidden_trainer(trainer)
            trainer.projection_rate = self._hidden.args.learning_rate
        if self._readings is not None:
            check_live_trainer(trainer, _args(cfg), self._readings)
        if self._crossing is not None:
            self._crossing.settle(self._source, self._objectives, trainer.named_datasets())
        callbacks: list[Any] = [InForce(trainer, stores)]
        if tensor_parallel_ranks(trainer.accelerator) > 1:
            from axolotl_distill.host.tensor_parallel import to_save

            callbacks += to_save()
        for source in getattr(self._source, "sources", {"": self._source}).values():
            average = getattr(getattr(source, "teacher", None), "average", None)
            if average is not None:
                from axolotl_distill.host.average import Averages

                trainer.average = average
                callbacks.append(Averages(average))
        given = _args(cfg).on_policy
        if given is not None:
            from axolotl_distill.host.rollouts import rollouts

            callbacks += rollouts(cfg, _args(cfg), trainer, self._source)
        return callbacks

    def _check(self, cfg: Any) -> None:
        from axolotl_distill.host.checks import other_plugins
        from axolotl_distill.host.crossing import cross_findings, crossing
        from axolotl_distill.host.datasets.types import all_stores
        from axolotl_distill.host.findings import enforce
        from axolotl_distill.host.hidden import hidden_findings, hidden_plan
        from axolotl_distill.host.live_checks import live_findings, live_readings
        from axolotl_distill.host.parallelism import parallelism
        from axolotl_distill.host.served_rollouts import check_rollout_server, served_findings
        from axolotl_distill.host.store_checks import stores_findings
        from axolotl_distill.host.telling import told_findings

        enforce(parallelism(cfg))
        enforce(other_plugins(cfg, DistillPlugin))
        enforce(live_findings(cfg, _args(cfg)))
        enforce(told_findings(cfg, _args(cfg)))
        enforce(served_findings(cfg, _args(cfg)))
        enforce(cross_findings(cfg, _args(cfg)))
        enforce(hidden_findings(cfg, _args(cfg)))
        enforce(stores_findings(cfg, _args(cfg)))
        self._hidden = hidden_plan(cfg, _args(cfg), lambda: all_stores(cfg))
        self._crossing = crossing(cfg, _args(cfg))
        if self._crossing is None and _args(cfg).teachers:
            self._readings = live_readings(cfg, _args(cfg))
        check_rollout_server(cfg, _args(cfg))
        self._checked = cfg


def _is_on(cfg: Any) -> bool:
    return cfg.distill is not None


def _args(cfg: Any) -> DistillArgs:
    return parse_distill(_plain(cfg.distill), cfg.datasets)


def _plain(block: Any) -> Any:
    """Axolotl's DictDefault answers every missing key with None; pydantic needs plain mappings."""
    return block.to_dict() if hasattr(block, "to_dict") else block
