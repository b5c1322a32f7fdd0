"""Tiny random checkpoints written by the real transformers and torch, with what transformers computes from them.

Run once with each major version of transformers (numpy, safetensors and torch beside it):

    python tests/golden/make_transformers_fixtures.py

It writes tests/golden/transformers-<major version>/<family> and, with version 4, tests/golden/torch-files. README.md in
those folders says what is what. The files are committed; nothing here runs in a build or in a test.
"""

import json
import pathlib
import random
import shutil

import numpy
import torch
import transformers
from safetensors.torch import save_file

MAJOR = int(transformers.__version__.split(".")[0])
GOLDEN = pathlib.Path(__file__).resolve().parent
ROOT = GOLDEN / f"transformers-{MAJOR}"

SIZES = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
GROUPED = dict(SIZES, num_key_value_heads=1, bos_token_id=1, eos_token_id=2)
ROPE = dict(rope_theta=10000.0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)


def rope(**settings):
    """Version 4 has rope_theta and rope_scaling, version 5 rope_parameters."""
    scaling = dict(settings)
    theta = scaling.pop("rope_theta")
    if MAJOR >= 5:
        return dict(rope_parameters=dict(rope_type="default", rope_theta=theta) | scaling)
    return dict(rope_theta=theta, rope_scaling=scaling or None)


def families():
    """Name, class, configuration, element type of the file, shard size."""
    t = transformers
    yield "bert", t.BertForPreTraining, t.BertConfig(**SIZES), torch.float16, None
    # fp32 files whose values fp16 holds, so that rounding them changes nothing.
    yield "roberta", t.RobertaForMaskedLM, t.RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1), torch.float32, None
    gpt2 = dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=98, eos_token_id=98)
    yield "gpt2", t.GPT2LMHeadModel, t.GPT2Config(**gpt2), torch.float16, None
    scaled = rope(**ROPE, **LLAMA3)
    yield "llama", t.LlamaForCausalLM, t.LlamaConfig(**GROUPED, **scaled, tie_word_embeddings=False), torch.bfloat16, None
    window = 4096 if MAJOR == 4 else None
    yield "mistral", t.MistralForCausalLM, t.MistralConfig(**GROUPED, **rope(**ROPE), sliding_window=window), torch.bfloat16, "20kB"
    yield "qwen2", t.Qwen2ForCausalLM, t.Qwen2Config(**GROUPED, **rope(rope_theta=1e6), tie_word_embeddings=True), torch.float16, None
    qwen3 = dict(GROUPED, head_dim=32)
    yield "qwen3", t.Qwen3ForCausalLM, t.Qwen3Config(**qwen3, **rope(rope_theta=1e6)), torch.float16, "40kB"
    relative = dict(relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=-1, position_biased_input=False, type_vocab_size=0)
    yield "deberta", t.DebertaForMaskedLM, t.DebertaConfig(**SIZES, **relative), torch.float16, None


def shake(model, generator):
    """Weights at which every part of the model shows in its output; all are fp16 and bf16 numbers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_((1 + 0.2 * noise if is_norm else 0.15 * noise).bfloat16().half().float())


def reference(model, generator):
    """Two sequences and the last hidden state of every token, in float64."""
    base = model.base_model.double().eval()
    ids, types, hidden, lengths = [], [], [], []
    for length in (11, 7):
        tokens = torch.randint(3, 98, (1, length), generator=generator)
        kinds = (torch.arange(length) >= length // 2).long().unsqueeze(0)
        arguments = dict(input_ids=tokens)
        if getattr(model.config, "type_vocab_size", 0) > 1:
            arguments["token_type_ids"] = kinds
        else:
            kinds = torch.zeros_like(kinds)
        with torch.no_grad():
            hidden.append(base(**arguments).last_hidden_state[0])
        ids.append(tokens[0])
        types.append(kinds[0])
        lengths.append(length)
    return dict(
        input_ids=torch.cat(ids).int(),
        token_type_ids=torch.cat(types).int(),
        input_lengths=torch.tensor(lengths).int(),
        hidden=torch.cat(hidden).float(),
    )


def write(name, kind, config, dtype, shard):
    generator = torch.Generator().manual_seed(7)
    config._attn_implementation = "eager"
    model = kind(config)
    shake(model, generator)
    model.tie_weights()
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    sizes = dict(max_shard_size=shard) if shard else {}
    stored = model.to(dtype)
    stored.save_pretrained(folder / "safetensors", **sizes)
    (folder / "safetensors" / "generation_config.json").unlink(missing_ok=True)
    binary = folder / "pytorch"
    if MAJOR == 4:
        stored.save_pretrained(binary, safe_serialization=False, **sizes)
        (binary / "generation_config.json").unlink(missing_ok=True)
        (binary / "config.json").unlink()
    else:
        binary.mkdir()
        torch.save(stored.state_dict(), binary / "pytorch_model.bin")
    if name == "roberta" and MAJOR == 4:
        # As the first published checkpoints are: before torch 1.6.
        torch.save(stored.state_dict(), binary / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    # Read again, since casting a model casts its table of rotations too.
    again = kind.from_pretrained(folder / "safetensors", torch_dtype=torch.float32, attn_implementation="eager")
    save_file(reference(again, generator), folder / "expected.safetensors")


def torch_files():
    """Files that hold what state dicts can hold beside plain matrices."""
    folder = GOLDEN / "torch-files"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    base = torch.randn(6, 10)
    cube = torch.randn(3, 4, 5)
    shared = torch.randn(40)
    state = {
        "plain": base,
        "transposed": base.t(),
        "columns": base[:, 3:7],
        "steps": base[::2, 1::3],
        "permuted": cube.permute(2, 0, 1),
        "tail": shared[25:],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(4, 3).half(),
        "bfloat": torch.randn(4, 3).bfloat16(),
        "double": torch.randn(2, 2).double().float().double(),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    }
    others = {"positions": torch.arange(5), "mask": torch.ones(2, 2, dtype=torch.bool), "count": 3, "note": "text"}
    torch.save({**state, **others}, folder / "views.pt")
    torch.save({**state, **others}, folder / "views-legacy.pt", _use_new_zipfile_serialization=False)
    expected = {name: tensor.detach().float().contiguous().clone() for name, tensor in state.items()}
    save_file(expected, folder / "views.safetensors")

    # What the released GLM code saves (utils.py, save_checkpoint) around the weights.
    random.seed(1)
    numpy.random.seed(1)
    module = torch.nn.Module()
    module.word_embeddings = torch.nn.Embedding(7, 4)
    module.transformer = torch.nn.Linear(4, 4)
    surroundings = {
        "iteration": 5,
        "optimizer": None,
        "lr_scheduler": {"start_lr": 1e-4, "num_iters": 10, "decay_style": "linear"},
        "csr_tensor_module_names": set(),
        "random_rng_state": random.getstate(),
        "np_rng_state": numpy.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
    }
    torch.save({"module": module.state_dict(), **surroundings}, folder / "module.pt")
    save_file({name: tensor.clone() for name, tensor in module.state_dict().items()}, folder / "module.safetensors")


if __name__ == "__main__":
    for family in families():
        write(*family)
    if MAJOR == 4:
        torch_files()
    versions = dict(transformers=transformers.__version__, torch=torch.__version__.split("+")[0], numpy=numpy.__version__)
    (ROOT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
