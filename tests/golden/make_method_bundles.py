"""Bundles for the methods beside the prefix, with what the real transformers and PEFT compute in float64.

    python tests/golden/make_method_bundles.py [prompts]     (transformers 4.57.6, peft 0.18.0, torch 2.9.1, safetensors)

Masked-language-model heads: random models of the classes `...ForMaskedLM`; the prefix goes through past_key_values, in
DeBERTa (which takes none) through an attention written here and held against transformers' without a prefix. Tokenizers and
texts are those of other bundles.

Prompts: embeddings in front of the input of other bundles' models, by PEFT's PROMPT_TUNING where that computes what ptune does.
The files are committed; nothing here runs in a build or in a test.
"""

import json
import math
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers.cache_utils import DynamicCache

GOLDEN = pathlib.Path(__file__).resolve().parent
LABELS = ["entailment", "not_entailment"]
WORDS = {"entailment": " twice", "not_entailment": " sold"}
PREFIX = 5
BATCH, STEPS, RATE = 8, 5, 1e-2
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=160)
NAMES = dict(id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)})


def shake(model, generator):
    """Weights at which every part of the model shows in its output; all are fp16 numbers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_((1 + 0.2 * noise if is_norm else 0.15 * noise).half().float())


def disentangled(module, prefix):
    """DeBERTa's attention with keys and values [heads, P, D] in front, which have no relative terms."""

    def split(x):
        return x.unflatten(-1, (module.num_attention_heads, -1)).transpose(-3, -2)

    def forward(hidden, mask, output_attentions=False, query_states=None, relative_pos=None, rel_embeddings=None):
        query, key, value = split(module.in_proj(hidden)).chunk(3, dim=-1)
        query, value = query + split(module.q_bias[None]), value + split(module.v_bias[None])
        span, length = module.max_relative_positions, hidden.shape[1]
        places = torch.arange(length)
        index = (places[:, None] - places[None, :] + span).clamp(0, 2 * span - 1)
        rows = torch.arange(length)
        to_keys = query @ split(module.pos_proj(rel_embeddings)).transpose(-1, -2)
        to_queries = key @ split(module.pos_q_proj(rel_embeddings)).transpose(-1, -2)
        relative = to_keys[..., rows[:, None], index] + to_queries[..., rows[None, :], index]
        scores = query @ key.transpose(-1, -2) + relative
        if prefix is not None:
            scores = torch.cat([query @ prefix[0].transpose(-1, -2), scores], dim=-1)
            value = torch.cat([prefix[1][None], value], dim=-2)
        scores = scores / math.sqrt(3 * query.shape[-1])
        return (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2), None

    return forward


class MaskedReference:
    """Logits of the words at the mask of one sequence."""

    def __init__(self, model, words, mask):
        self.model, self.words, self.mask = model, words, mask
        self.family = model.config.model_type

    def __call__(self, ids, prefix):
        config = self.model.config
        length, size = prefix.shape[0], config.hidden_size // config.num_attention_heads
        table = prefix.view(length, config.num_hidden_layers, 2, config.num_attention_heads, size).permute(1, 2, 3, 0, 4)
        arguments = dict(input_ids=ids[None])
        if self.family == "deberta":
            for layer, part in zip(self.model.deberta.encoder.layer, table):
                layer.attention.self.forward = disentangled(layer.attention.self, part)
        else:
            first = 0 if self.family == "bert" else config.pad_token_id + 1
            cache = DynamicCache()
            for layer, part in enumerate(table):
                cache.update(part[0][None], part[1][None], layer)
            arguments |= dict(
                past_key_values=cache,
                position_ids=(torch.arange(len(ids)) + first + length)[None],
                attention_mask=torch.ones(1, length + len(ids), dtype=torch.long),
            )
        hidden = self.model.base_model(**arguments).last_hidden_state
        head = self.model.lm_head if self.family == "roberta" else self.model.cls
        return head(hidden)[0][(ids == self.mask).nonzero().item(), self.words]


def trained(loss_of, start, clip, linear):
    """Five AdamW steps from `start`: losses, gradient norms, and what comes out."""
    tensors = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.AdamW(tensors.values(), lr=RATE, weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(tensors, step)
        loss.backward()
        norm = math.sqrt(sum(float((value.grad**2).sum()) for value in tensors.values()))
        losses.append(float(loss.detach()))
        norms.append(norm)
        for value in tensors.values():
            value.grad *= min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS) if linear else RATE
        optimizer.step()
    return torch.tensor(losses), torch.tensor(norms), {name: value.detach() for name, value in tensors.items()}


def expectations(loss_of, start):
    """Loss and gradients of the first batch, and two short trainings."""
    tensors = {name: value.clone().requires_grad_() for name, value in start.items()}
    loss = loss_of(tensors, 0)
    loss.backward()
    out = {"loss": loss.detach()[None]} | {f"grad.{name}": value.grad for name, value in tensors.items()}
    for kind, clip, linear in [("trained", None, False), ("trained_clipped_linear", 1.0, True)]:
        losses, norms, values = trained(loss_of, start, clip, linear)
        out |= {f"{kind}_losses": losses, f"{kind}_grad_norms": norms}
        out |= {f"{kind}.{name}": value for name, value in values.items()}
    return {name: value.float() for name, value in out.items()}


def case(name, task, family, reference, notes, **more):
    tolerance = lambda logits, loss, gradient, step: dict(
        logits_max_abs=logits, loss_abs=loss, grad_rel_l2=gradient, trained_delta_rel_l2=step, trained_clipped_linear_delta_rel_l2=step
    )
    # Of what a base bundle has too, at least its bounds: a sum of log-probabilities is off by more than a logit.
    base = more.get("base")
    of_base = json.loads((GOLDEN / base / "case.json").read_text())["tolerance_fp16_activation_engine"] if base else {}
    # Adam steps by the sign of a gradient that is near zero, and fp16 may have the other one.
    return dict(
        name=name,
        task=task,
        family=family,
        reference=f"{reference}, torch {torch.__version__.split('+')[0]}",
        precision="weights are fp16 values; computed in fp64, stored as fp32",
        settings=dict(batch_size=BATCH, steps=STEPS, optimizer=dict(name="AdamW (torch)", lr=RATE, weight_decay=0.0), dropout="none anywhere"),
        tolerance_fp32_engine=tolerance(1e-4, 1e-4, 1e-4, 2e-3),
        tolerance_fp16_activation_engine=tolerance(max(5e-2, of_base.get("logits_max_abs", 0)), 5e-3, 2e-2, 1.5e-1),
        notes=notes,
        **more,
    )


def write(folder, model, tokenizer, adapter_config, adapter, expected, lines, description, rename=lambda name: name):
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder / "model")
    (folder / "model/generation_config.json").unlink(missing_ok=True)
    weights = folder / "model/model.safetensors"
    state = {rename(name): value.clone() for name, value in __import__("safetensors.torch").torch.load_file(weights).items()}
    save_file(state, weights, metadata=dict(format="pt"))
    for name, text in tokenizer.items():
        (folder / "model" / name).write_text(text)
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(json.dumps(adapter_config, indent=2, sort_keys=True))
    save_file({name: value.float().contiguous() for name, value in adapter.items()}, folder / "adapter/adapter_model.safetensors", metadata=dict(format="pt"))
    save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")
    (folder / "data.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / "case.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n")


def tokenizer_of(bundle, edit=lambda value: None):
    """The tokenizer of another bundle: its files, and the tokenizer."""
    folder = GOLDEN / bundle / "model"
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    files = {"tokenizer.json": json.dumps(content, ensure_ascii=False), "tokenizer_config.json": (folder / "tokenizer_config.json").read_text()}
    from tokenizers import Tokenizer

    return files, Tokenizer.from_str(files["tokenizer.json"])


def masked(name, kind, config, source, mask, rename=lambda name: name):
    generator = torch.Generator().manual_seed(11)

    def edit(content):
        # As the published RoBERTa's: the mask takes the space in front of it.
        for token in content["added_tokens"]:
            token["lstrip"] = token["lstrip"] or token["content"] == "<mask>"

    files, tokenizer = tokenizer_of(source, edit)
    config._attn_implementation = "eager"
    model = kind(config)
    shake(model, generator)
    model.tie_weights()
    model.double().eval()
    lines = [json.loads(line) for line in (GOLDEN / "glm-cloze/data.jsonl").read_text().splitlines()]
    ids = [torch.tensor(tokenizer.encode(line["text"].replace("[MASK]", mask)).ids) for line in lines]
    mask_id = tokenizer.token_to_id(mask)
    words = [tokenizer.encode(word, add_special_tokens=False).ids for word in WORDS.values()]
    assert all(len(word) == 1 for word in words), words
    reference = MaskedReference(model, [word[0] for word in words], mask_id)
    labels = torch.tensor([LABELS.index(line["label"]) for line in lines])
    columns = config.num_hidden_layers * 2 * config.hidden_size
    prefix = (0.5 * torch.randn(PREFIX, columns, generator=generator)).double()
    if reference.family == "deberta":
        # The attention written here is transformers' where there is no prefix, but for its scale, which that has in fp32.
        own = model(input_ids=ids[0][None]).logits
        for layer in model.deberta.encoder.layer:
            layer.attention.self.forward = disentangled(layer.attention.self, None)
        assert float((own - model(input_ids=ids[0][None]).logits).abs().max()) < 1e-6

    def logits(prefix, items):
        return torch.stack([reference(ids[item], prefix) for item in items])

    def loss_of(tensors, step):
        items = [(BATCH * step + j) % len(ids) for j in range(BATCH)]
        return torch.nn.functional.cross_entropy(logits(tensors["prompt_embeddings"], items), labels[items])

    adapter = {"prompt_embeddings": prefix}
    expected = expectations(loss_of, adapter)
    with torch.no_grad():
        expected["logits"] = logits(prefix, range(len(ids))).float()
    expected |= dict(
        input_ids=torch.cat(ids).int(),
        input_lengths=torch.tensor([len(sequence) for sequence in ids]).int(),
        mask_index=torch.tensor([(sequence == mask_id).nonzero().item() for sequence in ids]).int(),
    )
    adapter_config = json.loads((GOLDEN / "glm-cloze/adapter/adapter_config.json").read_text())
    adapter_config |= dict(
        encoder_hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        num_virtual_tokens=PREFIX,
        task_type=None,
        token_dim=config.hidden_size,
    )
    notes = [
        "Logits of the words at the mask token: transform (dense, activation, norm), word embedding, bias; nothing of it is trained.",
        "Positions are shifted by the prefix length; one sequence at a time, so nothing is padded.",
    ]
    description = case(
        name,
        "cloze",
        reference.family,
        f"transformers {transformers.__version__} ({kind.__name__})",
        notes,
        verbalizer=WORDS,
        verbalizer_ids=dict(zip(LABELS, [word[0] for word in words])),
    )
    write(GOLDEN / name, model, files, adapter_config, adapter, expected, lines, description, rename)


def masked_bundles():
    t = transformers
    masked("bert-cloze", t.BertForMaskedLM, t.BertConfig(**SIZES, **NAMES, vocab_size=500), "bert-classification", "[MASK]")
    roberta = t.RobertaConfig(**SIZES, **NAMES, vocab_size=450, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
    masked("roberta-cloze", t.RobertaForMaskedLM, roberta, "roberta-classification", "<mask>")
    relative = dict(relative_attention=True, pos_att_type="c2p|p2c", max_relative_positions=-1, position_biased_input=False, type_vocab_size=0)
    deberta = t.DebertaConfig(**SIZES, **NAMES, **relative, vocab_size=450)
    # As in the checkpoints that Microsoft published.
    published = {
        "cls.predictions.transform.dense": "lm_predictions.lm_head.dense",
        "cls.predictions.transform.LayerNorm": "lm_predictions.lm_head.LayerNorm",
        "cls.predictions.bias": "lm_predictions.lm_head.bias",
    }

    def rename(name):
        for old, new in published.items():
            name = name.replace(old, new)
        return name

    masked("deberta-cloze", t.DebertaForMaskedLM, deberta, "deberta-classification", "[MASK]", rename)


class Embedding(torch.nn.Module):
    """Stands for PEFT's embedding of the prompt."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, indices):
        return torch.nn.functional.embedding(indices, self.weight)


def prompted(name, base, prompt, reference, logits_of, loss_from, head=None):
    """A prompt on the model and the texts of another bundle. `logits_of(tensors, item)`: what the head puts out."""
    from safetensors.torch import load_file

    folder, known = GOLDEN / name, load_file(GOLDEN / base / "expected.safetensors")
    start = {"prompt_embeddings": prompt.double()} | {key: value.double() for key, value in (head or {}).items()}
    count = len(known["input_lengths"])

    def loss_of(tensors, step):
        items = [(BATCH * step + j) % count for j in range(BATCH)]
        return loss_from([logits_of(tensors, item) for item in items], items)

    expected = expectations(loss_of, start)
    with torch.no_grad():
        expected["logits"] = torch.stack([loss_from.score(logits_of(start, item), item) for item in range(count)]).float()
    case_of_base = json.loads((GOLDEN / base / "case.json").read_text())
    notes = [
        "Virtual embeddings stand in front of the word embeddings; positions count over both, token types of the prompt are 0.",
        "Model, texts and token ids are those of the base bundle; one sequence at a time, so nothing is padded.",
        "Rotations are computed in fp64.",
    ]
    description = case(name, case_of_base["task"], case_of_base["family"], reference, notes, base=base)
    model = json.loads((GOLDEN / base / "model/config.json").read_text())
    adapter_config = dict(
        peft_type="PROMPT_TUNING",
        task_type={"classification": "SEQ_CLS", "tagging": "TOKEN_CLS", "causal-lm": "CAUSAL_LM"}[case_of_base["task"]],
        num_virtual_tokens=prompt.shape[0],
        num_layers=model["num_hidden_layers"],
        token_dim=prompt.shape[1],
        base_model_name_or_path="model",
    )
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter/adapter_config.json").write_text(json.dumps(adapter_config, indent=2, sort_keys=True))
    save_file({key: value.float() for key, value in start.items()}, folder / "adapter/adapter_model.safetensors", metadata=dict(format="pt"))
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n")


class Labels:
    """Cross-entropy of one row of logits an item."""

    def __init__(self, labels):
        self.labels = labels

    def __call__(self, logits, items):
        return torch.nn.functional.cross_entropy(torch.stack(logits), self.labels[items])

    def score(self, logits, _):
        return logits


class Tokens:
    """The mean over all targets of -log p; `targets[item]` is aligned with the tokens, -100 for none."""

    def __init__(self, targets):
        self.targets = targets

    def score(self, logits, item):
        targets = self.targets[item][1:]
        return -torch.nn.functional.cross_entropy(logits[:-1], targets, ignore_index=-100, reduction="sum")

    def __call__(self, logits, items):
        count = sum(int((self.targets[item][1:] != -100).sum()) for item in items)
        return -sum(self.score(values, item) for values, item in zip(logits, items)) / count


def split(known, name):
    return [part.long() for part in known[name].split(known["input_lengths"].tolist())]


def exact_rotations(config):
    """Cosines and sines in float64, where transformers computes them in float32 always."""
    size = config.hidden_size // config.num_attention_heads
    frequencies = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)

    def forward(_, positions):
        angles = positions[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    return forward


def prompt_bundles():
    from peft import PromptTuningConfig, get_peft_model
    from safetensors.torch import load_file

    t, generator = transformers, torch.Generator().manual_seed(13)
    versions = f"transformers {t.__version__}"

    base = "bert-classification"
    known = load_file(GOLDEN / base / "expected.safetensors")
    ids, kinds = split(known, "input_ids"), split(known, "token_type_ids")
    model = t.BertModel.from_pretrained(GOLDEN / base / "model", dtype=torch.float32, attn_implementation="eager").double().eval()
    lines = [json.loads(line) for line in (GOLDEN / base / "data.jsonl").read_text().splitlines()]
    names = model.config.id2label
    labels = torch.tensor([next(index for index, label in names.items() if label == line["label"]) for line in lines])
    size = model.config.hidden_size
    prompt = 0.3 * torch.randn(7, size, generator=generator)
    head = {
        "base_model.classifier.weight": 0.3 * torch.randn(len(names), size, generator=generator),
        "base_model.classifier.bias": 0.1 * torch.randn(len(names), generator=generator),
    }

    def pooled(tensors, item):
        """The text's first token, behind the prompt, through pooler and classifier."""
        prompt = tensors["prompt_embeddings"]
        embeddings = torch.cat([prompt, model.embeddings.word_embeddings(ids[item])])
        types = torch.cat([torch.zeros(len(prompt), dtype=torch.long), kinds[item]])
        hidden = model(inputs_embeds=embeddings[None], token_type_ids=types[None]).last_hidden_state[0, len(prompt)]
        pooled = model.pooler.dense(hidden).tanh()
        return tensors["base_model.classifier.weight"] @ pooled + tensors["base_model.classifier.bias"]

    prompted("bert-prompt-classification", base, prompt, f"{versions} (BertModel, inputs_embeds)", pooled, Labels(labels), head)

    base = "llama-causal-lm"
    known = load_file(GOLDEN / base / "expected.safetensors")
    tokens, targets = split(known, "input_ids"), split(known, "labels")
    model = t.AutoModelForCausalLM.from_pretrained(GOLDEN / base / "model", dtype=torch.float32, attn_implementation="eager").double().eval()
    model.model.rotary_emb.forward = exact_rotations(model.config)
    prompt = 0.3 * torch.randn(5, model.config.hidden_size, generator=generator)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt)))

    def next_tokens(tensors, item):
        tuned.prompt_encoder["default"].embedding = Embedding(tensors["prompt_embeddings"])
        tuned.eval()
        return tuned(input_ids=tokens[item][None], attention_mask=torch.ones(1, len(tokens[item]))).logits[0, len(prompt) :]

    import peft

    reference = f"peft {peft.__version__} (PROMPT_TUNING), {versions}"
    prompted("llama-prompt-causal-lm", base, prompt, reference, next_tokens, Tokens(targets))


if __name__ == "__main__":
    if "prompts" not in sys.argv:
        masked_bundles()
    prompt_bundles()
