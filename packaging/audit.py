"""Check what is installed and published: `make audit`.

Asks for known vulnerabilities of every pinned package (pip-audit), writes a bill of materials
(CycloneDX), and builds the wheel twice, which must give the same bytes. What needs a network that
is not there is skipped, and says so; everything else that fails ends with exit code 1.
"""

import argparse
import json
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
               "--no-deps", "--progress-spinner", "off", "--format", "json"]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        is_away = any(sign in done.stderr for sign in _UNREACHABLE)
        why = "SKIPPED, the service cannot be asked" if is_away else "FAILED"
        say(f"vulnerabilities, {lock.name}: {why}: {last}")
        return not is_away
    # An index without a service answers that it does not know the package.
    unknown = [one for one in found if "skip_reason" in one]
    hurt = [one for one in found if one.get("vulns")]
    outcome = f"{len(found) - len(unknown)} packages, {len(hurt)} with known vulnerabilities"
    if len(unknown) == len(found):
        outcome = "SKIPPED, the service knows none of the packages"
    elif unknown:
        outcome += f"; {len(unknown)} could not be asked for"
    say(f"vulnerabilities, {lock.name}: {outcome}")
    for one in hurt:
        say(f"    {one['name']} {one['version']}: {', '.join(v['id'] for v in one['vulns'])}")
    return bool(hurt)


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
