"""One case of measure.py: a description on standard input, a result as the last line of standard output.

Full fine-tuning is mixed precision as torch.autocast has it: weights, gradients and AdamW's moments in fp32, products in
bf16. For LoRA and prefix tuning the frozen model is in bf16 and what is trained in fp32, as PEFT makes it.
"""

import contextlib
import json
import platform
import resource
import subprocess
import sys
import time
import warnings

import peft
import torch
import transformers

WARM_UP = 2


def machine(device):
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    if device.type != "cuda":
        return {"device": "cpu", "memory_bytes": None, "driver": None, **versions}
    properties = torch.cuda.get_device_properties(device)
    driver = smi("--query-gpu=driver_version")
    return {"device": properties.name, "memory_bytes": properties.total_memory, "driver": driver, **versions}


def smi(query):
    """The first line that nvidia-smi answers; None where it is missing."""
    try:
        found = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.splitlines()[0].strip() if found.returncode == 0 and found.stdout else None


def configure(given):
    """The configuration of transformers, and what stands in for the model where transformers has none."""
    fields = {name: value for name, value in given["config"].items() if value is not None}
    family, stand_in = fields.pop("model_type"), None
    if family == "glm":
        # GLM of 2021 is a decoder of GPT-2's form; the fused tanh GELU is GLM's, and keeps least.
        stand_in = "a GPT-2 of the same layers and widths"
        family = "gpt2"
        fields = {
            "n_embd": fields["hidden_size"],
            "n_layer": fields["num_layers"],
            "n_head": fields["num_attention_heads"],
            "vocab_size": fields["vocab_size"],
            "n_positions": fields["max_sequence_length"],
            "activation_function": "gelu_pytorch_tanh",
        }
    config = transformers.CONFIG_MAPPING[family](**fields)
    settings = given["settings"]
    for name in ["hidden_dropout_prob", "resid_pdrop", "embd_pdrop"]:
        if hasattr(config, name):
            setattr(config, name, settings["hidden_dropout"])
    for name in ["attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"]:
        if hasattr(config, name):
            setattr(config, name, settings["attention_dropout"])
    config.num_labels = 2
    config.use_cache = False
    if config.pad_token_id is None:
        config.pad_token_id = 0
    return config, stand_in


def build(given, config, device):
    """The model as the method has it, on the device from the start."""
    method = given["method"]
    full = method.startswith("full")
    with torch.device(device):
        model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32 if full else torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    checkpointing = method.endswith("checkpointing")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if method.startswith("lora"):
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=given["lora_rank"], lora_alpha=2 * given["lora_rank"]))
    if method == "prefix":
        length = given["settings"]["prefix_length"]
        model = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=length))
    return model.to(device).train(), parameters


def batch(given, config, device):
    """Sequences of random tokens, padded to the longest, in two classes."""
    lengths = given["lengths"]
    random = torch.Generator().manual_seed(given["settings"]["seed"])
    ids = torch.randint(min(10, config.vocab_size - 1), config.vocab_size, (len(lengths), max(lengths)), generator=random)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    fields = {"input_ids": torch.where(mask, ids, config.pad_token_id), "attention_mask": mask.long(), "labels": torch.arange(len(lengths)) % 2}
    return {name: value.to(device) for name, value in fields.items()}


class Saved:
    """Bytes that autograd keeps for the backward, each storage once, parameters left out."""

    def __init__(self, model):
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.storages, self.keep = {}, []

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage.nbytes()
            self.keep.append(tensor)  # so that no address is used again
        return tensor

    def bytes(self):
        return sum(self.storages.values())


def measure(given, device, result):
    config, result["stand_in"] = configure(given)
    model, result["parameters"] = build(given, config, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    result["trained_parameters"] = sum(parameter.numel() for parameter in trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    fields = batch(given, config, device)

    def step(hooks=None):
        with torch.autocast(device.type, dtype=torch.bfloat16), hooks or contextlib.nullcontext():
            loss = model(**fields).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(WARM_UP):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, steps = time.perf_counter(), given["settings"]["steps"]
    for _ in range(steps):
        loss = step()
    result["loss"] = loss.item()  # waits for the device
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / steps
    result |= {"status": "ok", "step_seconds": seconds, "tokens_per_second": sum(given["lengths"]) / seconds}
    memory(device, result)
    # In a step of its own, after the peaks are read: hooks cost time. What is checkpointed is hidden from them.
    if not given["method"].endswith("checkpointing"):
        saved = Saved(model)
        step(torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor))
        result["saved_bytes"] = saved.bytes()


def memory(device, result):
    result["host_peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = smi("--query-gpu=memory.used")
        result |= {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
            "driver_used_bytes": total - free,
            "nvidia_smi_used_bytes": None if used is None else int(used) << 20,
        }


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    given = json.load(sys.stdin)
    device = torch.device(given["device"])
    torch.manual_seed(given["settings"]["seed"])
    names = ["reason", "stand_in", "parameters", "trained_parameters", "step_seconds", "tokens_per_second", "loss", "saved_bytes"]
    names += ["peak_allocated_bytes", "peak_reserved_bytes", "driver_used_bytes", "nvidia_smi_used_bytes", "host_peak_bytes"]
    result = {"status": "failed", **dict.fromkeys(names), "machine": machine(device)}
    try:
        measure(given, device, result)
    except torch.OutOfMemoryError as error:
        memory(device, result)
        result |= {"status": "out of memory", "reason": str(error).splitlines()[0]}
    except Exception as error:
        # What a package does not support is a result too: its own words.
        result |= {"status": "failed", "reason": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
