"""Measures how others tune the same model on the same batch: full fine-tuning, LoRA and PEFT's prefix tuning.

    python benches/peers/measure.py --ptune target/release/ptune --architecture roberta-large --tokens 16384 --length 256 \
        --json peers.json

Shapes, lengths and steps are those that `ptune bench step` measures with the same options: they are asked of it
(--print-config), so there is no second table. Each case runs in a process of its own (case.py); one that does not fit the
device is recorded as out of memory. Without a GPU, torch, transformers or peft this says so and records nothing;
`--device cpu` tries small shapes anywhere. README.md says what is measured.
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import subprocess
import sys

PACKAGES = ["torch", "transformers", "peft"]
METHODS = ["full", "full-checkpointing", "lora", "lora-checkpointing", "prefix"]
# What `bench step` is told; the defaults are its own.
PASSED_ON = ["tokens", "length", "lengths", "prefix-length", "steps", "hidden-dropout", "attention-dropout", "seed"]


def stop(message):
    sys.exit(f"error: {message}")


def parse():
    parser = argparse.ArgumentParser(description="Measures full fine-tuning, LoRA and PEFT's prefix tuning beside ptune.")
    parser.add_argument("--ptune", required=True, help="the program, which knows the shapes")
    parser.add_argument("--architecture", action="append", required=True, help="a name that `ptune bench step` knows; may be repeated")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated [default: all]")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a trial with small shapes")
    parser.add_argument("--timeout", type=int, default=600, help="seconds of a case")
    parser.add_argument("--json", required=True, help="file for the results")
    for name in PASSED_ON:
        parser.add_argument(f"--{name}", help="as of `ptune bench step`")
    return parser.parse_args()


def configuration(options, architecture):
    """The model's config.json and the batch, as `ptune bench step` would take them."""
    command = [options.ptune, "bench", "step", "--architecture", architecture, "--random-weights", "--device", "cpu", "--print-config"]
    for name in PASSED_ON:
        value = getattr(options, name.replace("-", "_"))
        if value is not None:
            command += [f"--{name}", value]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        stop(f"{options.ptune}: {error.strerror}; --ptune names the program")
    if found.returncode:
        stop(found.stderr.strip().removeprefix("error: "))
    return json.loads(found.stdout)


def run(case, options):
    """One case in its own process: its result, or what became of it."""
    program = str(pathlib.Path(__file__).with_name("case.py"))
    try:
        found = subprocess.run([sys.executable, program], input=json.dumps(case), capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not done after {options.timeout} s"}
    if found.returncode:
        lines = [line for line in found.stderr.splitlines() if line.strip()] or ["no message"]
        signal = f"ended by signal {-found.returncode}: " if found.returncode < 0 else ""
        return {"status": "failed", "reason": signal + lines[-1]}
    return json.loads(found.stdout.splitlines()[-1])


def gibibytes(count):
    return "-" if count is None else f"{count / 2**30:.2f}"


def main():
    options = parse()
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        stop(f"{', '.join(missing)}: not installed here (pip install torch transformers peft); nothing was measured")
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        stop("torch finds no GPU here; nothing was measured (--device cpu tries small shapes)")
    folder = pathlib.Path(options.json).resolve().parent
    if not folder.is_dir():
        stop(f"{folder}: there is no such folder for --json")

    print(f"{'architecture':<18} {'method':<20} {'status':<14} {'tokens/s':>10} {'allocated GiB':>14} {'reserved GiB':>13} {'saved GiB':>10}")
    cases, settings, machine = [], None, {}
    for architecture in options.architecture:
        given = configuration(options, architecture)
        settings = {**given["settings"], "lora_rank": options.lora_rank}
        for method in options.method or METHODS:
            case = {**given, "method": method, "lora_rank": options.lora_rank, "device": options.device}
            result = run(case, options)
            machine = result.pop("machine", None) or machine
            cases.append({"architecture": architecture, "method": method, **result})
            speed = result.get("tokens_per_second")
            print(
                f"{architecture:<18} {method:<20} {result['status']:<14} {'-' if speed is None else round(speed):>10} "
                f"{gibibytes(result.get('peak_allocated_bytes')):>14} {gibibytes(result.get('peak_reserved_bytes')):>13} "
                f"{gibibytes(result.get('saved_bytes')):>10}  {result.get('reason') or ''}".rstrip(),
                flush=True,
            )
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    report = {"kind": "peers", "schema": 1, "date": date, "machine": machine, "settings": settings, "cases": cases}
    pathlib.Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    if not any(case["status"] == "ok" for case in cases):
        stop("no case was measured")


if __name__ == "__main__":
    main()
