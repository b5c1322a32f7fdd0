# Everything there is to do in a fresh clone: `make demo` to see it work, `make test` before a change is handed in.

PTUNE   := target/release/ptune
MINILM  := weights/all-MiniLM-L6-v2
EXAMPLE := examples/library-messages
DEMO    := runs/demo

.PHONY: build demo test bench fetch nvcc clean

# The program, target/release/ptune, with kernels for GPUs wherever an nvcc is or can be fetched.
build: nvcc
	cargo build --release --locked

# nvcc into .nvcc/, once, where the machine has none.
nvcc:
	@scripts/fetch-nvcc.sh

# A small pretrained model into weights/, once.
fetch:
	@scripts/fetch-minilm.sh

# Tunes the small model on the example messages, scores it on messages that were kept apart, and classifies new ones.
demo: build fetch
	@rm -rf $(DEMO)
	$(PTUNE) train --model $(MINILM) --task classification --data $(EXAMPLE)/train.jsonl --output $(DEMO) \
	    --prefix-length 20 --learning-rate 1e-2 --batch-size 16 --epochs 20
	$(PTUNE) eval --model $(MINILM) --adapter $(DEMO) --data $(EXAMPLE)/test.jsonl
	$(PTUNE) predict --model $(MINILM) --adapter $(DEMO) --input $(EXAMPLE)/new.jsonl --output $(DEMO)/predictions.jsonl
	@awk -f scripts/show-predictions.awk $(DEMO)/predictions.jsonl $(EXAMPLE)/new.jsonl

# Formatting, lints and all tests: those of the program, of the kernels on an emulated device, and of their machine code.
test: nvcc
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features emulation -- -D warnings
	cargo test --locked --features emulation

# The speed of a training step of a small model and of a large one, here.
bench: build
	$(PTUNE) bench step --architecture minilm-l6 --random-weights --tokens 4096 --length 128
	$(PTUNE) bench step --architecture roberta-large --random-weights --tokens 1024 --length 256 --steps 3

# Build outputs and the demo's run. The fetched model and nvcc stay (rm -r weights/*/ .nvcc removes them).
clean:
	cargo clean
	rm -rf $(DEMO)
