"""From settings to a `TrainEngine` on this rank."""

from typing import Literal

import torch
from transformers import PreTrainedModel

from rlsys.models.deepspeed_settings import compute_dtype, deepspeed_settings
from rlsys.models.document_attention import attend_by_document
from rlsys.models.engine import TrainEngine
from rlsys.models.liger import add_kernels
from rlsys.models.loading import ScalarModel, load_causal_lm, load_scalar_model
from rlsys.models.lora import add_adapters
from rlsys.models.process_group import ProcessGroup
from rlsys.models.sequence_parallel import SequenceParallel
from rlsys.models.token_logprobs import TokenLogprobModel
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings

ModelKind = Literal["policy", "scalar"]


def build_engine(
    kind: ModelKind,
    *,
    model: ModelSettings,
    learner: LearnerSettings,
    group: ProcessGroup,
    trainable: bool = True,
) -> TrainEngine:
    """Load the model and put DeepSpeed around it. Collective.

    Args:
        kind: `policy`: token logprobs; `scalar`: a reward or value model.
        model: where it comes from.
        learner: how it is trained.
        group: the ranks that share it.
        trainable: without it there is no optimizer, and DeepSpeed is used only to partition weights over ranks.
    """
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    torch.set_num_threads(learner.num_threads)
    config = deepspeed_settings(learner, group.device, trainable=trainable)
    partitioned = learner.zero_stage == 3 and (trainable or group.world_size > 1)
    while_loading = HfDeepSpeedConfig(config) if partitioned else None
    dtype = compute_dtype(learner, group.device)
    load = load_causal_lm if kind == "policy" else load_scalar_model
    hf_model: PreTrainedModel = load(model, dtype)
    del while_loading
    attend_by_document(hf_model, group.device)
    add_kernels(hf_model, learner.liger, group.device)
    if trainable and learner.lora is not None:
        add_adapters(hf_model, learner.lora, model.init_seed)
    if learner.gradient_checkpointing and trainable:
        hf_model.gradient_checkpointing_enable({"use_reentrant": False})
    sequence = SequenceParallel(group.part(learner.sequence_parallel), hf_model)
    module = TokenLogprobModel(hf_model, learner.logits_chunk) if kind == "policy" else ScalarModel(hf_model)
    if not trainable:
        module.requires_grad_(False)
    if not trainable and not partitioned:
        module.to(group.device)
        return TrainEngine(module, engine=module, settings=learner, group=group, sequence=sequence)
    if partitioned and (not trainable or learner.lora is None):
        # One decoder layer is gathered and released as a whole: a sixth less time than hooks on all its parts. Not with
        # adapters: DeepSpeed reduces a leaf's gradients once its input's is there, and a frozen embedding gives none.
        deepspeed.utils.set_z3_leaf_modules(hf_model, sorted(hf_model._no_split_modules or ()))
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    return TrainEngine(module, engine=engine, settings=learner, group=group, sequence=sequence)


def close_engine(engine: TrainEngine) -> None:
    """Let go of a model's memory, so that another can be loaded. Collective."""
    if engine.engine is not engine.module:
        engine.engine.destroy()
    engine.sequence.close()
    engine.group.barrier()
