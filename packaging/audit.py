"""Check what is installed and published: `make audit`.

Asks for known vulnerabilities of every pinned package (pip-audit), writes a bill of materials
(CycloneDX), and builds the wheel twice, which must give the same bytes. What needs a network that
is not there is skipped, and says so; everything else that fails ends with exit code 1.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from check_installs import reproducible_wheel

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".venv-audit" / "bin"
LOCKS = ("cpu", "docs", "audit", "fuzz")
# What pip-audit says if it cannot ask; it exits with 1 for findings as well.
_UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError", "ProxyError",
                "Max retries exceeded", "404 Client Error", "503")  # fmt: skip


def main() -> int:
    """Run each check and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=Path, default=TOOLS, help="folder of the tools' commands")
    parser.add_argument("--sbom", type=Path, default=ROOT / "build" / "sbom.json")
    args = parser.parse_args()
    failed = [vulnerabilities(args.tools, name) for name in LOCKS]
    failed.append(bill_of_materials(args.tools, args.sbom))
    with tempfile.TemporaryDirectory() as scratch:
        wheel = reproducible_wheel(Path(scratch))
        say(f"wheel: {wheel.name}, built twice, the same {wheel.stat().st_size:,} bytes")
    return int(any(failed))


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def vulnerabilities(tools: Path, name: str) -> bool:
    """Does a package of a lock file have a known vulnerability, or could it not be read?"""
    lock = ROOT / "requirements" / f"{name}.lock"
    command = [tools / "pip-audit", "--requirement", lock, "--require-hashes", "--disable-pip",
               "--no-deps", "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode and any(sign in done.stderr for sign in _UNREACHABLE):
        say(f"vulnerabilities, {lock.name}: SKIPPED, the service cannot be asked: {last[:200]}")
        return False
    say(f"vulnerabilities, {lock.name}: {last[:200]}")
    if done.returncode:
        say(done.stdout)
    return bool(done.returncode)


def bill_of_materials(tools: Path, target: Path) -> bool:
    """Write the bill of materials of requirements/cpu.lock."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [tools / "cyclonedx-py", "requirements", ROOT / "requirements" / "cpu.lock",
               "--pyproject", ROOT / "pyproject.toml", "--output-reproducible",
               "--of", "JSON", "-o", target]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    last = (done.stderr.strip().splitlines() or ["written"])[-1]
    say(f"bill of materials: {last[:300] if done.returncode else target}")
    return bool(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
