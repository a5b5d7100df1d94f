"""Fetch onnxruntime-web and export a policy, so that a static file server can serve this folder.

    make playground POLICY=DIR     # or: python docs/playground/build.py DIR

vendor/ gets what single-threaded WebAssembly needs of the npm package, policy/ what scripts/export.py writes. Git ignores both.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from vla_mini.envs.toy_pick.spec import SPEC
from vla_mini.export import ExportedPolicy, load_policy
from vla_mini.export.onnx import export
from vla_mini.policy import Policy

PAGE = Path(__file__).resolve().parent
PACKAGE = "onnxruntime-web@1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512 of its archive
# Name in the package -> name here. Not every server knows .mjs as JavaScript.
FILES = {"dist/ort.wasm.bundle.min.mjs": "onnxruntime.js", "dist/ort-wasm-simd-threaded.wasm": "onnxruntime.wasm"}
LIMIT = 2.0  # megabytes of a policy that a page may load


def fetch_onnxruntime(vendor: Path) -> None:
    """Fill the folder `vendor`. ValueError where npm is missing or fails, and where the archive is not the one known here."""
    if all((vendor / name).is_file() for name in FILES.values()):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("npm, which fetches onnxruntime-web, is missing: install Node.js")
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
        if packed.returncode:
            said = " ".join(packed.stderr.split()) or f"exit code {packed.returncode}"
            raise ValueError(f"npm cannot fetch {PACKAGE}: {said}")
        archive = Path(folder) / packed.stdout.split()[-1]
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != INTEGRITY:
            raise ValueError(f"npm's archive of {PACKAGE} is not the one that this page was tested with: its SHA-512 differs")
        new = Path(folder) / "vendor"
        new.mkdir()
        with tarfile.open(archive) as files:
            for name, ours in FILES.items():
                with files.extractfile(f"package/{name}") as source, (new / ours).open("wb") as target:
                    shutil.copyfileobj(source, target)
        shutil.rmtree(vendor, ignore_errors=True)
        shutil.copytree(new, vendor)


def export_policy(policy: Policy, output: Path) -> float:
    """Replace the folder `output` by an export: its megabytes. ValueError where it cannot be exported or is too large."""
    with tempfile.TemporaryDirectory(prefix="policy.partial-", dir=output.parent) as folder:
        written = export(policy, Path(folder) / "policy")
        if written.megabytes > LIMIT:
            raise ValueError(f"the policy has {written.megabytes:.2f} MB, more than the {LIMIT:.0f} MB that a page should load")
        shutil.rmtree(output, ignore_errors=True)
        (Path(folder) / "policy").rename(output)
    return written.megabytes


def main(arguments: list[str]) -> int:
    try:
        if len(arguments) != 1:
            raise ValueError("give one policy's folder: make playground POLICY=DIR")
        policy = load_policy(arguments[0])
        if isinstance(policy, ExportedPolicy):
            raise ValueError(f"policy={arguments[0]} is an exported policy already: give the one that it was made of")
        if policy.source.get("env") != SPEC.id or policy.features != SPEC.features:
            raise ValueError(f"policy={arguments[0]} was not trained on toy_pick, which the page plays")
        fetch_onnxruntime(PAGE / "vendor")
        megabytes = export_policy(policy, PAGE / "policy")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    runtime = sum(path.stat().st_size for path in (PAGE / "vendor").iterdir()) / 1e6
    print(f"{PAGE}: policy {megabytes:.2f} MB, onnxruntime-web {runtime:.1f} MB")
    print(f"serve it: python -m http.server --bind 127.0.0.1 -d {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
