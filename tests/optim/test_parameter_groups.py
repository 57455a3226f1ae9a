"""Roles and groups of real models' parameters."""

import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf.optim.parameter_groups import build_param_groups, describe, named_groups, parameter_roles
from rlhf.training.weights.master import MasterWeights

TINY = dict(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)


def tiny_llama(**settings):
    return LlamaForCausalLM(LlamaConfig(**TINY, **settings))


def smollm2():
    """The shapes of SmolLM2-135M, without its weights."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.tie_weights()
    return model


def names(group):
    return [name for name, _ in group["params"]]


@pytest.mark.parametrize(("optimizer", "role"), [("frugal", "split"), ("auon", "matrix"), ("muon", "matrix")])
def test_groups_of_a_language_model(optimizer, role):
    groups = build_param_groups(smollm2(), optimizer=optimizer, weight_decay=0.1)
    assert [(group["role"], group["weight_decay"], len(group["params"])) for group in groups] == [
        ("full", 0.1, 1), (role, 0.1, 210), ("full", 0.0, 61)
    ]  # fmt: skip
    assert names(groups[0]) == ["model.embed_tokens.weight"]
    assert describe(groups) == f"full: 62 tensors, 28,346,688 elements; {role}: 210 tensors, 106,168,320 elements"


@pytest.mark.parametrize("optimizer", ["adamw", "adabelief"])
def test_elementwise_optimizers_have_one_role(optimizer):
    groups = build_param_groups(smollm2(), optimizer=optimizer)
    assert describe(groups) == "full: 272 tensors, 134,515,008 elements"
    # without decay there is nothing to tell vectors and matrices apart
    assert len(groups) == 1


def test_torch_takes_the_groups_with_their_names():
    groups = build_param_groups(tiny_llama(), optimizer="frugal", weight_decay=0.1, min_split_numel=0)
    expected, line = [names(group) for group in groups], describe(groups)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert [group["param_names"] for group in optimizer.param_groups] == expected
    assert describe(optimizer.param_groups) == line


def test_each_trainable_parameter_is_in_exactly_one_group_and_no_group_is_empty():
    model = tiny_llama()
    model.model.layers[0].requires_grad_(False)
    groups = build_param_groups(model, optimizer="auon", weight_decay=0.1, min_split_numel=0)
    assert all(group["params"] for group in groups)
    expected = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(name for group in groups for name in names(group)) == sorted(expected)


def test_biases_and_vectors_are_not_decayed():
    model = tiny_llama(attention_bias=True)
    groups = build_param_groups(model, optimizer="adamw", weight_decay=0.1)
    decayed = {name for group in groups if group["weight_decay"] for name in names(group)}
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}


@pytest.mark.parametrize(
    ("numel", "dim", "split"), [(0, 0, {"q", "k", "up"}), (64 * 128, 0, {"up"}), (0, 33, {"q", "up"}), (8193, 0, set())]
)
def test_small_matrices_are_full(numel, dim, split):
    model = tiny_llama(num_key_value_heads=1)
    roles = parameter_roles(model, optimizer="frugal", min_split_numel=numel, min_split_dim=dim)
    layer = {name.split(".")[-2].removesuffix("_proj"): role for name, role in roles.items() if "layers.0" in name}
    assert {name for name in ("q", "k", "up") if layer[name] == "split"} == split


def test_heads_and_what_is_tied_to_them_are_full():
    head = parameter_roles(tiny_llama(), optimizer="frugal", min_split_numel=0)
    assert head["lm_head.weight"] == head["model.embed_tokens.weight"] == "full"
    classifier = LlamaForSequenceClassification(LlamaConfig(**TINY, num_labels=64))
    assert parameter_roles(classifier, optimizer="frugal", min_split_numel=0)["score.weight"] == "full"
    # a decoder under a harmless name, tied to the embedding that comes after it
    model = nn.ModuleDict({"decoder": nn.Linear(64, 128, bias=False), "words": nn.Embedding(128, 64)})
    model["words"].weight = model["decoder"].weight
    assert parameter_roles(model, optimizer="frugal", min_split_numel=0) == {
        "decoder.weight": "full", "words.weight": "full"
    }  # fmt: skip
    model["words"].weight = nn.Parameter(torch.zeros(128, 64))
    assert parameter_roles(model, optimizer="frugal", min_split_numel=0)["decoder.weight"] == "split"


def test_adapters_are_full_and_the_group_without_decay_is_not_made():
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(tiny_llama(), config)
    groups = build_param_groups(model, optimizer="frugal", weight_decay=0.1)
    assert len(groups) == 1 and describe(groups).startswith("full: 9 tensors")
    forced = build_param_groups(
        model, optimizer="auon", min_split_numel=0, min_split_dim=0, overrides={"lora_B": {"lr": 16e-3}}
    )
    assert [(group["role"], group.get("lr"), len(group["params"])) for group in forced] == [
        ("matrix", None, 4), ("matrix", 16e-3, 4), ("full", None, 1)
    ]  # fmt: skip


def test_later_overrides_win():
    overrides = {"layers": {"role": "full", "lr": 1.0}, r"q_proj": {"lr": 2.0, "weight_decay": 0.5}}
    groups = build_param_groups(tiny_llama(), optimizer="frugal", min_split_numel=0, overrides=overrides)
    by_name = {name: group for group in groups for name in names(group)}
    assert by_name["model.layers.0.self_attn.q_proj.weight"]["lr"] == 2.0
    assert by_name["model.layers.0.self_attn.q_proj.weight"]["weight_decay"] == 0.5
    assert by_name["model.layers.0.self_attn.k_proj.weight"]["lr"] == 1.0
    assert {group["role"] for group in groups} == {"full"}
    assert "lr" not in by_name["model.embed_tokens.weight"]


def test_masters_are_grouped_as_the_parameters_they_stand_for():
    model = tiny_llama().bfloat16()
    masters = MasterWeights(model, dict(model.named_parameters()), lambda masters: None)
    owned = dict(zip(masters.names, masters.masters, strict=True))
    roles = parameter_roles(model, optimizer="frugal", min_split_numel=0)
    groups = named_groups(owned, roles, weight_decay=0.1)
    direct = build_param_groups(model, optimizer="frugal", weight_decay=0.1, min_split_numel=0)
    assert [(names(group), group["role"], group["weight_decay"]) for group in groups] == [
        (names(group), group["role"], group["weight_decay"]) for group in direct
    ]
    assert {parameter.dtype for group in groups for _, parameter in group["params"]} == {torch.float32}


def test_dtypes_are_in_groups_of_their_own():
    model = tiny_llama()
    model.model.layers[1].bfloat16()
    groups = build_param_groups(model, optimizer="frugal", min_split_numel=0)
    kinds = [(group["role"], {parameter.dtype for _, parameter in group["params"]}) for group in groups]
    assert all(len(dtypes) == 1 for _, dtypes in kinds)
    assert len(kinds) == 4 and sum(role == "split" for role, _ in kinds) == 2


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_device_meshes_are_in_groups_of_their_own(one_rank):
    model = tiny_llama()
    for index, layer in enumerate(model.model.layers):
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,), mesh_dim_names=(f"mesh{index}",)))
    groups = build_param_groups(model, optimizer="frugal", min_split_numel=0)
    meshes = [{getattr(parameter, "device_mesh", None) for _, parameter in group["params"]} for group in groups]
    assert all(len(mesh) == 1 for mesh in meshes)
    split = [group for group in groups if group["role"] == "split"]
    assert [len(group["params"]) for group in split] == [7, 7]


def test_parameters_that_zero_3_has_emptied_keep_their_roles():
    model = tiny_llama()
    expected = build_param_groups(model, optimizer="frugal", weight_decay=0.1, min_split_numel=0)
    line = describe(expected)
    shapes = [(names(group), group["role"], group["weight_decay"]) for group in expected]
    for parameter in model.parameters():
        # what deepspeed.zero.Init leaves of a parameter
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    groups = build_param_groups(model, optimizer="frugal", weight_decay=0.1, min_split_numel=0)
    assert [(names(group), group["role"], group["weight_decay"]) for group in groups] == shapes
    assert describe(groups) == line


def test_wrong_settings_are_refused():
    model = tiny_llama()
    with pytest.raises(ValueError, match="optimizer is 'adam': choose one of adamw, adabelief, frugal, auon, muon"):
        build_param_groups(model, optimizer="adam")
    with pytest.raises(ValueError, match=r"'qproj' matches no trainable parameter; names are like model\.embed_tokens"):
        build_param_groups(model, optimizer="frugal", overrides={"qproj": {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"role 'split' is for matrices, and model.norm.weight has shape \(64,\)"):
        build_param_groups(model, optimizer="frugal", overrides={r"^model\.norm": {"role": "split"}})
    with pytest.raises(ValueError, match=r"model.norm.weight has role 'half': choose one of full, split, matrix"):
        build_param_groups(model, optimizer="frugal", overrides={r"^model\.norm": {"role": "half"}})
    with pytest.raises(ValueError, match="no role for other: names are those of the model's named_parameters"):
        named_groups({"other": torch.zeros(2)}, parameter_roles(model, optimizer="frugal"))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="the model has no trainable parameter: check what is frozen"):
        build_param_groups(model, optimizer="frugal")
