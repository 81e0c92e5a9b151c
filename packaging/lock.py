"""Write the hashes of requirements/*.lock again, for the versions that stand there: `make lock`.

To move to other versions, edit the pins (or take those of an environment that was tested), and run
this. It needs `uv`, which asks whatever index the user has configured. A pin that the index does
not have, or that changes on the way, is an error, and nothing is written.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("audit", "cpu", "docs", "fuzz")
_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;\\]+)[ \t]*(;[^\\\n]+)?", re.ASCII)


def main() -> int:
    """Lock each file that is named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *LOCKS], default=[])
    parser.add_argument("--uv", default=shutil.which("uv") or "uv", help="the uv command")
    args = parser.parse_args()
    for name in args.names or LOCKS:
        path = ROOT / "requirements" / f"{name}.lock"
        path.write_text(locked(path.read_text(encoding="utf-8"), args.uv), encoding="utf-8")
        sys.stdout.write(f"{path.name}: {len(pins(path.read_text(encoding='utf-8')))} packages\n")
    return 0


def pins(text: str) -> dict[str, tuple[str, str]]:
    """Name -> version and marker, of a lock file's text.

    >>> pins('Some_Name==1.0 ; sys_platform == "linux" \\\\\\n    --hash=sha256:0\\n')
    {'some-name': ('1.0', '; sys_platform == "linux"')}
    """
    found = (_PIN.match(line) for line in text.splitlines())
    return {
        re.sub(r"[-_.]+", "-", pin[1]).lower(): (pin[2], (pin[3] or "").strip())
        for pin in found
        if pin
    }


def locked(text: str, uv: str) -> str:
    """The text of a lock file with the hashes of its versions; comments at its beginning stay."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    before = pins(text)
    with tempfile.TemporaryDirectory() as scratch:
        wanted, output = Path(scratch) / "wanted.in", Path(scratch) / "locked.txt"
        # Markers go back afterwards: uv would resolve them for this machine.
        wanted.write_text("".join(f"{name}=={version}\n" for name, (version, _) in before.items()))
        command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-deps", "--no-header",
                   "--no-annotate", "--output-file", str(output), str(wanted)]  # fmt: skip
        subprocess.run(command, check=True)
        lines = output.read_text(encoding="utf-8").splitlines()
    after = pins("\n".join(lines))
    if changed := sorted(n for n in before if before[n][0] != after.get(n, ("", ""))[0]):
        raise SystemExit(f"uv answers with other versions of {', '.join(changed)}")
    marked = [_with_marker(line, before) for line in lines]
    return "\n".join([*comments, *marked]) + "\n"


def _with_marker(line: str, before: dict[str, tuple[str, str]]) -> str:
    if not (pin := _PIN.match(line)):
        return line
    marker = before[re.sub(r"[-_.]+", "-", pin[1]).lower()][1]
    return f"{pin[1]}=={pin[2]}{' ' if marker else ''}{marker} \\"


if __name__ == "__main__":
    sys.exit(main())
